"""Engines are judged before TensorRT sees them, loaded with the calls that each release has, and run on addresses.

Against fakes of TensorRT's API and of a GPU: that an engine computes what it should takes a real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import BuildConfig, TensorRTOptions
from engines.device.base import GpuInfo
from engines.errors import DeployError, GpuLostError
from engines.jetson import read_jetson
from engines.layers import executed
from engines.tensorrt_backend import TensorRTBackend
from engines.trt import backend as backend_module
from engines.trt import blob as engine_file
from engines.trt.cache import default_path
from engines.trt.inspector import precision
from tests.engines import fake_tensorrt
from tests.engines.fake_gpu import H100, ORIN, FakeGpu

VERSIONS = ("8.6.2", "10.3.0", "10.16.2", "11.4.1")
LAYERS = [("conv", "CONVOLUTION", "FLOAT", ("image",)), ("logits", "SOFTMAX", "FLOAT", ("conv",))]
WINDOW = np.zeros((1, 3, 8, 8), np.float32)
Maker = Callable[..., tuple[TensorRTBackend, Any]]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(H100).install(monkeypatch)


@pytest.fixture
def backend_of(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Maker:
    def make(version: str, **behaviour: Any) -> tuple[TensorRTBackend, Any]:
        backend, sdk = TensorRTBackend(), fake_tensorrt.make(version, **behaviour)
        monkeypatch.setattr(backend, "sdk", lambda: sdk)
        return backend, sdk

    return make


def _built(backend_of: Maker, folder: Path, version: str = "10.3.0", **options: Any) -> bytes:
    model = fake_tensorrt.graph(folder / "model.onnx", LAYERS)
    return backend_of(version)[0].build(model, BuildConfig(tensorrt=TensorRTOptions(**options)))


def _names(sdk: Any) -> list[str]:
    return [name for name, _ in sdk.calls]


@pytest.mark.parametrize("version", VERSIONS)
def test_runs_by_name_on_addresses(backend_of: Maker, gpu: FakeGpu, tmp_path: Path, version: str) -> None:
    """The whole conversation, from the plan to the second run: no binding indices, no default stream."""
    blob = _built(backend_of, tmp_path, version)
    backend, sdk = backend_of(version)
    with backend.load(blob, BuildConfig()) as session:
        assert (session.input.name, session.input.shape, session.input.dtype) == ("image", (1, 3, 8, 8), "fp32")
        assert (session.output.name, session.output.shape, session.output.dtype) == ("logits", (1, 5, 2, 2), "fp32")
        assert session.capturable
        session.enqueue(0x100, 0x200, 0x300)
        session.enqueue(0x400, 0x500, 0x300)
    assert sdk.calls == [
        ("deserialize_cuda_engine", b"the plan of TensorRT"),
        ("create_execution_context", ()),
        ("set_tensor_address", ("image", 0x100)),
        ("set_tensor_address", ("logits", 0x200)),
        ("execute_async_v3", 0x300),
        ("set_tensor_address", ("image", 0x400)),
        ("set_tensor_address", ("logits", 0x500)),
        ("execute_async_v3", 0x300),
    ]


def test_windows_go_through_the_gpu_on_its_own_stream(backend_of: Maker, gpu: FakeGpu, tmp_path: Path) -> None:
    blob = _built(backend_of, tmp_path)
    backend, sdk = backend_of("10.3.0")
    with backend.load(blob, BuildConfig()) as session:
        logits = session.run(WINDOW)
        with pytest.raises(DeployError, match=r"engine input: got \(2, 3, 8, 8\)"):
            session.run(np.zeros((2, 3, 8, 8), np.float32))
    assert logits.shape == (1, 5, 2, 2)
    assert logits.dtype == np.float32
    assert (logits == 0.5).all()
    (_, source), (_, target) = gpu.calls
    assert sdk.calls[2:] == [
        ("set_tensor_address", ("image", source)),
        ("set_tensor_address", ("logits", target)),
        ("execute_async_v3", gpu.stream),
    ]


A_BYTE, CUT, EMPTY, FOREIGN = "a byte", "cut", "empty", "foreign"
H200 = replace(H100, name="NVIDIA H200")
A100 = GpuInfo("NVIDIA A100", (8, 0), 13000, 40 * 2**30, False)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"version": "10.3.1"}, "built with 'tensorrt 10.3.0', but this is 'tensorrt 10.3.1'"),
        ({"gpu": ORIN}, r"built on 'cuda sm_90 NVIDIA H100 .*', but this is 'cuda sm_87 Orin"),
        ({"gpu": H200}, "but this is 'cuda sm_90 NVIDIA H200"),
        ({"gpu": replace(H100, driver=12080)}, r"driver for CUDA 13\.0, but the driver here is for 12\.8"),
        ({"bytes": A_BYTE}, "its plan has changed since it was built"),
        ({"bytes": CUT}, "got 17 bytes of plan, expected 20"),
        ({"bytes": EMPTY}, "got a file of another kind"),
        ({"bytes": FOREIGN}, "got a file of another kind"),
        ({"bytes": "header"}, "its header has changed"),
    ],
)
def test_tensorrt_never_sees_an_engine_that_is_not_its_own(
    backend_of: Maker, gpu: FakeGpu, tmp_path: Path, change: dict[str, Any], wanted: str
) -> None:
    blob = _built(backend_of, tmp_path)
    start = len(engine_file.MAGIC) + 8
    blob = {
        A_BYTE: blob[:-1] + b"x", CUT: blob[:-3], EMPTY: b"", FOREIGN: b"ftrt" + blob,
        "header": blob[:start] + b"?" + blob[start + 1 :],
    }.get(change.get("bytes", ""), blob)  # fmt: skip
    gpu.info = change.get("gpu", H100)
    fake = "10.16.2" if "version" in change else "10.3.0"
    backend, sdk = backend_of(fake)
    sdk.__version__ = change.get("version", "10.3.0")
    with pytest.raises(DeployError, match=wanted), backend.load(blob, BuildConfig()):
        pass
    with pytest.raises(DeployError, match=wanted):
        backend.layers(blob, BuildConfig(), WINDOW)
    assert sdk.calls == []


@pytest.mark.parametrize(
    ("built", "here", "options", "loads"),
    [
        (("10.3.0", H100), ("10.3.0", replace(H100, driver=13010)), {}, True),  # a newer driver
        (("10.3.0", H100), ("10.3.0", H200), {"hardware": "same_cc"}, True),
        (("10.3.0", H100), ("10.3.0", A100), {"hardware": "same_cc"}, False),
        (("10.3.0", A100), ("10.3.0", H100), {"hardware": "ampere_plus"}, True),
        (("10.3.0", A100), ("10.3.0", replace(A100, name="T4", sm=(7, 5))), {"hardware": "ampere_plus"}, False),
        (("8.6.2", H100), ("10.16.2", H100), {"version_compatible": True}, True),
        (("10.3.0", H100), ("11.4.1", H100), {"version_compatible": True}, True),
        (("10.3.0", H100), ("10.16.2", H100), {"version_compatible": True}, True),
        (("10.16.2", H100), ("10.3.0", H100), {"version_compatible": True}, False),
        (("8.6.2", H100), ("11.4.1", H100), {"version_compatible": True}, False),
        (("11.4.1", H100), ("10.16.2", H100), {"version_compatible": True}, False),
        (("10.3.0", H100), ("10.16.2", H100), {}, False),
        (("10.3.0", H100), ("11.4.1", H200), {"version_compatible": True}, False),
    ],
)
def test_what_compatible_engines_load_on(built: Any, here: Any, options: dict[str, Any], loads: bool) -> None:
    """By the manifest's words and by the engine's own header alike."""
    asked = TensorRTOptions(**options)
    (version, gpu), (other, another) = built, here
    words = f"tensorrt {version}", str(gpu)
    header = engine_file.Header(*words, asked, (), "", "", 0)
    now = f"tensorrt {other}", str(another)
    assert (engine_file.refuses(header, *now, ahead=False) is None) == loads
    reason = engine_file.refused_sdk(words[0], now[0], asked)
    reason = reason or engine_file.refused_device(words[1], now[1], asked, ahead=False)
    assert (reason is None) == loads


def test_the_manifest_is_judged_by_the_same_rules(backend_of: Maker, gpu: FakeGpu) -> None:
    backend, _ = backend_of("11.4.1")
    compatible = BuildConfig(tensorrt=TensorRTOptions(version_compatible=True))
    assert backend.refuses("tensorrt 10.3.0", str(H100), compatible) is None
    assert backend.refuses("tensorrt 10.3.0", str(H100), BuildConfig()) is not None
    assert backend.refuses("openvino 2026.4", "cpu x86_64", compatible) is not None
    assert backend.refuses("tensorrt 11.4.1", "cpu x86_64", compatible) is not None


def test_engines_for_other_versions_may_bring_their_own_runtime(backend_of: Maker, tmp_path: Path) -> None:
    blob = _built(backend_of, tmp_path, "10.3.0", version_compatible=True)
    backend, sdk = backend_of("11.4.1")
    with backend.load(blob, BuildConfig()):
        pass
    assert sdk.calls[0] == ("Runtime.engine_host_code_allowed", True)


def test_stripped_engines_take_their_weights_from_the_graph(backend_of: Maker, tmp_path: Path) -> None:
    blob, model = _built(backend_of, tmp_path, strip_weights=True), tmp_path / "model.onnx"
    backend, sdk = backend_of("10.3.0")
    with backend.load(blob, BuildConfig(model=model)):
        pass
    called = ["deserialize_cuda_engine", "refit_from_bytes", "refit_cuda_engine", "create_execution_context"]
    assert _names(sdk) == called
    for config in (BuildConfig(), BuildConfig(model=tmp_path / "other.onnx")):
        fake_tensorrt.graph(tmp_path / "other.onnx", LAYERS[:1])
        wanted = r"no weights of its own, and (no graph|another other\.onnx) to take"
        with pytest.raises(DeployError, match=wanted), backend.load(blob, config):
            pass


@pytest.mark.parametrize(
    ("behaviour", "wanted"),
    [
        ({"no_engine": "Error Code 1: Serialization (magic tag)"}, r"cannot go on loading the engine: .*magic tag"),
        ({"no_context": "Error Code 2: OutOfMemory (requested 1 GB)"}, r"no GPU memory left while making an execution"),
    ],
)
def test_what_the_runtime_refuses_is_explained(
    backend_of: Maker, tmp_path: Path, behaviour: dict[str, str], wanted: str
) -> None:
    blob = _built(backend_of, tmp_path)
    backend, _ = backend_of("10.3.0", **behaviour)
    with pytest.raises(DeployError, match=wanted), backend.load(blob, BuildConfig()):
        pass


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_fails_is_an_error_and_a_lost_gpu_is_told_as_such(
    backend_of: Maker, gpu: FakeGpu, tmp_path: Path, lost: bool
) -> None:
    blob = _built(backend_of, tmp_path)
    backend, _ = backend_of("10.3.0", refuses_to_run="Error Code 1: Cask (illegal memory access)")
    gpu.lost = lost
    wanted = "GPU: lost" if lost else "cannot run the engine: .*illegal memory access"
    with backend.load(blob, BuildConfig()) as session, pytest.raises(DeployError, match=wanted) as caught:
        session.run(WINDOW)
    assert isinstance(caught.value, GpuLostError) == lost


def _tensor(text: str) -> dict[str, Any]:
    return {"Name": "t", "Format/Datatype": text}


def test_layers_join_what_they_are_with_what_they_took(backend_of: Maker, tmp_path: Path) -> None:
    told = {
        "Layers": [
            {"Name": "conv", "LayerType": "gemm", "Inputs": [_tensor("Int8")], "Outputs": [_tensor("Half")]},
            {"Name": "norm", "LayerType": "kgen", "Inputs": [_tensor("Half")], "Outputs": [_tensor("Int8")]},
            {"Name": "never run", "LayerType": "Constant", "Inputs": [], "Outputs": [_tensor("Float")]},
            {"Name": "head", "LayerType": "kgen", "Inputs": [_tensor("Float")], "Outputs": [_tensor("Float")]},
        ]
    }
    blob = _built(backend_of, tmp_path)
    backend, _ = backend_of("10.3.0", inspector=told, times={"conv": 0.2, "norm": 0.1, "head": 0.6, "copy": 0.1})
    layers = backend.layers(blob, BuildConfig(), WINDOW, runs=3)
    rows = [(layer.name, layer.type, layer.precision) for layer in layers]
    assert rows == [
        ("conv", "gemm", "int8"), ("norm", "kgen", "fp16"), ("head", "kgen", "fp32"), ("copy", "?", "?")
    ]  # fmt: skip
    assert executed(layers) == pytest.approx({"fp32": 0.6, "int8": 0.2, "fp16": 0.1, "?": 0.1})


def test_an_engine_without_an_account_of_its_layers_says_so(backend_of: Maker, tmp_path: Path) -> None:
    blob = _built(backend_of, tmp_path)
    backend, _ = backend_of("10.3.0", inspector={"Layers": ["conv", "norm"]})
    with pytest.raises(DeployError, match="built without an account of its layers"):
        backend.layers(blob, BuildConfig(), WINDOW)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Row major linear FP32 format (kLINEAR)", "fp32"),
        ("Int32", "int32"),
        ("nothing known", "?"),
    ],
)
def test_precision_is_read_from_the_words_of_every_release(text: str, wanted: str) -> None:
    assert precision({"Inputs": [_tensor(text)]}) == wanted
    assert precision({"Inputs": [{"Name": "t", "DataType": text}]}) == wanted
    assert precision({"Inputs": [], "Outputs": [_tensor(text)]}) == wanted
    half_weights = {"Inputs": [_tensor("Float")], "Weights": {"Type": "Half", "Count": 9}}
    assert precision(half_weights) == "fp16"
    assert precision({**half_weights, "Weights": {"Type": "Half", "Count": 0}}) == "fp32"


def test_unavailable_says_what_is_missing(backend_of: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend, _ = backend_of("10.3.0")
    found = {"there": True}
    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda name: object() if found["there"] else None)
    assert backend.unavailable() is None

    def fails() -> Any:
        raise ImportError("libnvdla_compiler.so: cannot open shared object file")

    monkeypatch.setattr(backend, "sdk", fails)
    assert "libnvdla_compiler.so is missing; on the board itself: sudo apt install" in (backend.unavailable() or "")
    from engines.device import cuda

    monkeypatch.setattr(cuda, "unavailable", lambda: "GPU: pycuda is not installed; pip install pycuda")
    assert backend.unavailable() == "GPU: pycuda is not installed; pip install pycuda"
    found["there"] = False
    monkeypatch.setattr(backend_module, "read_jetson", lambda: read_jetson(tmp_path))
    assert (backend.unavailable() or "").endswith("on a machine with an NVIDIA GPU: pip install -e '.[tensorrt]'")
    (tmp_path / "sys/devices/soc0").mkdir(parents=True)  # all that a container on a board sees of it
    (tmp_path / "sys/devices/soc0/family").write_text("Tegra\n")
    (tmp_path / "sys/devices/soc0/soc_id").write_text("35\n")
    assert "python3-libnvinfer" in (backend.unavailable() or "")
    assert "--system-site-packages" in (backend.unavailable() or "")


def test_the_timing_cache_lies_beside_the_bundle_and_names_sdk_and_gpu(tmp_path: Path) -> None:
    path = default_path(tmp_path / "b2", "tensorrt 10.3.0", str(ORIN))
    assert path == tmp_path / "tensorrt-10.3.0-sm87-Orin.timing-cache"


def test_the_header_survives_json(tmp_path: Path) -> None:
    header = engine_file.Header("a 1", "b", TensorRTOptions(level=2), ("SM86",), "c", engine_file.digest(b"plan"), 4)
    again, plan = engine_file.unpack(engine_file.pack(header, b"plan"))
    assert again == header
    assert bytes(plan) == b"plan"
    assert json.loads(json.dumps(header.options.to_json()))["level"] == 2
