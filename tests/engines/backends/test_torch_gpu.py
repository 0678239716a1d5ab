"""PyTorch on a GPU: the same code on the CPU, the addresses by a stand-in for the GPU's memory, and all that fails.

Where there is a GPU, the last tests run on it.
"""

from __future__ import annotations

import gc
import io
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engines import backends
from engines.backends import get_backend, torch_gpu
from engines.backends.torch_gpu_errors import reported
from engines.contract import BuildConfig
from engines.errors import DeployError, GpuLostError
from engines.gpu import context
from engines.gpu.info import GpuInfo
from pipeline.graph.export import trace
from tests.models import tiny

SIZE = (64, 96)
NAMES = ("torch_cuda", "torch_compile")
gpu = pytest.mark.gpu


def _program(module: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.export.save(trace(module, SIZE), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def program() -> bytes:
    return _program(tiny())


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything as on a GPU, but for the name of the device."""
    monkeypatch.setattr(torch_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def _reference(module: nn.Module, windows: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(windows)).numpy()


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("precision", "relative"), [("fp32", 1e-6), ("fp16", 5e-3)])
def test_logits_are_the_modules(program: bytes, windows: np.ndarray, precision: str, relative: float) -> None:
    expected = _reference(tiny(), windows)
    with get_backend("torch_cuda").load(program, BuildConfig(precision)) as session:
        logits = session.run(windows)
    assert logits.dtype == np.float32
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert difference <= relative
    assert (difference > 1e-5) == (precision == "fp16")  # it did compute in fp16


class _Stubborn(nn.Module):
    """Names a type, a device and a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((1, 3, 1, 1), 2.0)
        self.network = tiny()

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(SIZE[1], device=x.device, dtype=torch.float32) / SIZE[1]
        return self.network((x * self.scale).to(torch.float32) + ramp)


@pytest.mark.usefixtures("on_cpu")
def test_types_and_constants_of_the_program_follow(windows: np.ndarray) -> None:
    module = _Stubborn().eval()
    expected = _reference(module, windows)
    with get_backend("torch_cuda").load(_program(module), BuildConfig("fp16")) as session:
        assert np.abs(session.run(windows) - expected).max() <= 5e-3 * np.abs(expected).max()


def test_devices_of_the_program_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: whatever had stayed on the CPU would refuse to meet the rest."""
    monkeypatch.setattr(torch_gpu, "DEVICE", "meta")
    program = torch_gpu.load_program(_program(_Stubborn().eval()))
    module, shape = torch_gpu._prepared(program, "fp16")
    logits = module(torch.zeros(shape, dtype=torch.float16, device="meta"))
    assert (logits.is_meta, logits.dtype, tuple(logits.shape)) == (True, torch.float16, (1, 5, 16, 24))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_enqueue_reads_and_writes_the_addresses_on_the_stream(
    program: bytes, windows: np.ndarray, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[int] = []

    @contextmanager
    def stream(handle: int) -> Iterator[None]:
        streams.append(handle)
        yield
        streams.append(-handle)

    def as_tensor(pointer: Any, device: str) -> Tensor:
        """What torch does with GPU memory, done with this process's own, by the interface alone."""
        interface = dict(pointer.__cuda_array_interface__, version=3)
        assert streams == [77]
        return torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=interface)))

    monkeypatch.setattr(torch.cuda, "ExternalStream", int)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    kind = {"fp32": np.float32, "fp16": np.float16}[precision]
    with get_backend("torch_cuda").load(program, BuildConfig(precision)) as session:
        image, logits = windows.astype(kind), np.zeros((1, 5, 16, 24), kind)
        assert (session.input.shape, session.input.dtype) == (image.shape, precision)
        assert (session.output.shape, session.output.dtype) == (logits.shape, precision)
        assert not session.capturable
        session.enqueue(image.ctypes.data, logits.ctypes.data, 77)
        assert np.array_equal(logits.astype(np.float32), session.run(windows))
    assert streams == [77, -77]


@pytest.mark.usefixtures("on_cpu")
def test_the_weights_are_given_back_though_the_session_is_held(program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    modules: list[weakref.ref[Any]] = []
    prepared, alive = torch_gpu._prepared, list[bool]()

    def watched(*arguments: Any) -> Any:
        module, shape = prepared(*arguments)
        modules.append(weakref.ref(next(module.parameters())))
        return module, shape

    def empty_cache() -> None:
        gc.collect()
        alive.extend(module() is not None for module in modules)

    monkeypatch.setattr(torch_gpu, "_prepared", watched)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    with get_backend("torch_cuda").load(program, BuildConfig("fp32")) as session:
        assert session.input.shape == (1, 3, *SIZE)
    assert alive == [False]


@pytest.mark.usefixtures("on_cpu")
def test_tf32_is_off_inside_and_as_before_outside(program: bytes, windows: np.ndarray) -> None:
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    said: list[str] = []
    config = BuildConfig("fp32", log=lambda step, text: said.append(text))
    with get_backend("torch_cuda").load(program, config):
        assert [switch.allow_tf32 for switch in switches] == [False, False]
    assert [switch.allow_tf32 for switch in switches] == before
    assert "TF32 off" in said[0]


@pytest.mark.usefixtures("on_cpu")
def test_layers_say_what_each_operation_computed_in(windows: np.ndarray) -> None:
    layers = get_backend("torch_cuda").layers(_program(_Stubborn().eval()), BuildConfig("fp16"), windows, runs=2)
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    assert {"conv2d", "linear", "layer_norm"} <= {layer.type for layer in layers}
    assert {layer.precision for layer in layers} == {"fp16"}


@pytest.mark.usefixtures("on_cpu")
def test_compile_never_leaves_a_part_to_eager(program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: asked.append(options) or module)
    with get_backend("torch_compile").load(program, BuildConfig("fp16")):
        assert asked == [{"fullgraph": True, "dynamic": False}]

    def broken(module: Any, **options: Any) -> Any:
        def run(x: Tensor) -> Tensor:
            raise RuntimeError("backend='inductor' raised:\nRuntimeError: Cannot find a working triton\nand so on")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with (
        pytest.raises(DeployError, match=r"torch_compile: failed while running .*: .*Cannot find a working triton$"),
        get_backend("torch_compile").load(program, BuildConfig("fp16")),
    ):
        pass


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("torch_cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(backend.unavailable())
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def too_old() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found version 11040).\nmore", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert "driver on your system is too old (found version 11040).); look at nvidia-smi" in str(backend.unavailable())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(context, "unavailable", lambda: "GPU: pycuda is not installed")
    assert backend.unavailable() == "GPU: pycuda is not installed"  # gather and stitch need it
    monkeypatch.setattr(context, "unavailable", lambda: None)
    assert backend.unavailable() is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "not installed" in str(backend.unavailable())
    assert backend.supports("fp16") is None
    assert "triton" in str(get_backend("torch_compile").supports("fp16"))
    assert "fp32 and fp16, not int8" in str(backend.supports("int8"))


def test_the_device_is_the_one_that_other_backends_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(
        name="NVIDIA H100", major=9, minor=0, total_memory=80 << 30, is_integrated=0, multi_processor_count=132
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {0: found}.__getitem__)
    monkeypatch.setattr(torch_gpu, "_driver", lambda: 13000)
    expected = GpuInfo("NVIDIA H100", (9, 0), 13000, 80 << 30, False, 132)
    assert [get_backend(name).device() for name in NAMES] == [str(expected)] * 2


def test_auto_never_takes_a_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", NAMES)
    for name in NAMES:
        monkeypatch.setattr(type(get_backend(name)), "unavailable", lambda self: None)
    with pytest.raises(DeployError, match="backend auto: none can run here"):
        backends.choose_backend("auto", "fp32")


def _accelerator_error(text: str, code: int) -> RuntimeError:
    error = torch.AcceleratorError(text)
    error.error_code = code
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), DeployError, "no GPU memory left"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), DeployError, "no GPU memory left"),
        (_accelerator_error("CUDA error: an illegal memory access was encountered\nSearch", 700), GpuLostError, "lost"),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel"), GpuLostError, "lost"),
        (_accelerator_error("CUDA error: unspecified launch failure", 719), GpuLostError, "lost"),
        (_accelerator_error("CUDA error: invalid argument", 1), DeployError, "failed while running: CUDA error"),
        (RuntimeError(""), DeployError, "failed while running: RuntimeError"),
    ],
)
def test_errors_are_one_line(error: RuntimeError, kind: type[DeployError], words: str) -> None:
    with pytest.raises(DeployError, match=words) as caught, reported("torch_cuda", "running"):
        raise error
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("on_cpu")
def test_a_lost_gpu_in_the_middle_is_said_so(program: bytes, windows: np.ndarray) -> None:
    with get_backend("torch_cuda").load(program, BuildConfig("fp32")) as session:

        def fault(image: Tensor) -> Tensor:
            raise _accelerator_error("CUDA error: misaligned address", 716)

        session._module = fault  # type: ignore[attr-defined]
        with pytest.raises(GpuLostError, match="misaligned address"):
            session.run(windows)


def test_what_cannot_be_built_is_refused(tmp_path: Path, program: bytes) -> None:
    backend = get_backend("torch_cuda")
    with pytest.raises(DeployError, match=r"torch_cuda: model\.onnx has no PyTorch module"):
        backend.build(tmp_path / "model.onnx", BuildConfig("fp32"))
    with pytest.raises(DeployError, match="batch of 4 windows, expected 1"):
        backend.build(tmp_path / "model.onnx", BuildConfig("fp32", program=tmp_path / "p", batch=4))
    with pytest.raises(DeployError, match="cannot load the program"), backend.load(b"nothing", BuildConfig("fp32")):
        pass


def _usable(name: str) -> Any:
    backend = get_backend(name)
    reason = backend.unavailable() or backend.supports("fp16")
    if reason:
        pytest.skip(f"backend {name}: {reason}")
    return backend


@gpu
@pytest.mark.filterwarnings("default")  # of whatever torch is beside the GPU: 2.11 warns of its own code
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "relative"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_on_a_gpu(program: bytes, windows: np.ndarray, name: str, precision: str, relative: float) -> None:
    backend = _usable(name)
    expected = _reference(tiny(), windows)
    with backend.load(program, BuildConfig(precision)) as session:
        logits = session.run(windows)
        assert np.abs(logits - expected).max() <= relative * np.abs(expected).max()
        kind = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        image = torch.from_numpy(windows).to("cuda", kind)
        target = torch.zeros(session.output.shape, dtype=kind, device="cuda")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        session.enqueue(image.data_ptr(), target.data_ptr(), stream.cuda_stream)
        stream.synchronize()
        assert np.array_equal(target.float().cpu().numpy(), logits)
    assert backend.device().startswith("cuda sm_")
