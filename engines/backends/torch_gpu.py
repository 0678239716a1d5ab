"""PyTorch on an NVIDIA GPU, from the program that was exported on the CPU: the baseline that GPU engines have to beat.

``torch_cuda`` runs it eagerly, in fp32 (TF32 off) or with every tensor in fp16; ``torch_compile`` runs the same through
torch.compile (Inductor), and never eagerly instead.  With torch_cpu.py the only file here that imports torch.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engines.backends.torch_cpu import load_program, program_bytes
from engines.backends.torch_gpu_errors import reported
from engines.contract import Backend, BuildConfig, Float32, Layer, Session, Tensor, check_windows, from_microseconds
from engines.errors import DeployError
from engines.gpu import context
from engines.gpu.info import GpuInfo
from engines.machine.jetson import read_module

DEVICE = "cuda"
_TYPES = {"fp32": ("float32", "<f4"), "fp16": ("float16", "<f2")}  # in torch, and in __cuda_array_interface__


class Pointer:
    """`tensor` at a device address that somebody else owns, in the form that torch.as_tensor wraps without copying.

    https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 2: it names no stream, since both
    sides work on the one that `enqueue` is given.
    """

    def __init__(self, address: int, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": tensor.shape, "typestr": _TYPES[tensor.dtype][1], "data": (address, False), "version": 2,
            "strides": None,
        }  # fmt: skip


class TorchCudaSession:
    """Not recordable into a graph of ours: PyTorch takes what lies between input and output from a pool of its own, and
    would hand the same memory out again between two replays.
    """

    capturable = False
    runtime_cache = b""

    def __init__(self, name: str, module: Any, input: Tensor, output: Tensor) -> None:
        self._name, self._module, self.input, self.output = name, module, input, output

    def close(self) -> None:
        self._module = None

    def another(self) -> TorchCudaSession:
        raise DeployError(f"{self._name}: PyTorch has no execution contexts")

    def run(self, windows: Float32) -> Float32:
        import torch

        check_windows(windows, self.input.shape)
        with reported(self._name, "running the model"), torch.inference_mode():
            image = torch.from_numpy(windows).to(DEVICE).to(_type(self.input.dtype))
            logits: Float32 = self._module(image).float().cpu().numpy()
        return logits

    def enqueue(self, source: int, target: int, stream: int) -> None:
        """In the process's primary context, which is the one that PyTorch works in."""
        import torch

        with (
            reported(self._name, "running the model"),
            torch.inference_mode(),
            torch.cuda.stream(torch.cuda.ExternalStream(stream)),  # type: ignore[no-untyped-call]
        ):
            image = torch.as_tensor(Pointer(source, self.input), device=DEVICE)
            torch.as_tensor(Pointer(target, self.output), device=DEVICE).copy_(self._module(image))


class TorchCudaBackend(Backend):
    on_gpu = True
    from_program = True

    def __init__(self, name: str, compiled: bool) -> None:
        self._name, self._compiled = name, compiled

    @property
    def name(self) -> str:
        return self._name

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return "the torch package is not installed; pip install torch"
        import torch

        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA; install a build of torch for your CUDA"
        with warnings.catch_warnings(record=True) as said:  # why there is no device, such as too old a driver
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                return context.unavailable()
        why = f" ({str(said[0].message).splitlines()[0]})" if said else ""
        return f"torch sees no GPU{why}; look at nvidia-smi, and at CUDA_VISIBLE_DEVICES"

    def version(self) -> str:
        import torch

        return f"torch {torch.__version__.split('+')[0]} CUDA {torch.version.cuda}"

    def device(self) -> str:
        import torch

        with reported(self.name, "asking for the GPU"):
            found = torch.cuda.get_device_properties(torch.cuda.current_device())
        info = GpuInfo(
            found.name, sm=(found.major, found.minor), driver=_driver(), memory=found.total_memory,
            integrated=bool(found.is_integrated), multiprocessors=found.multi_processor_count,
            module=read_module() if found.is_integrated else "",
        )  # fmt: skip
        return str(info)

    def supports(self, precision: str) -> str | None:
        if precision not in _TYPES:
            return f"it is a baseline in fp32 and fp16, not {precision}"
        if self._compiled and importlib.util.find_spec("triton") is None:
            return "torch.compile needs the triton package on a GPU; pip install triton, or use --backend torch_cuda"
        if self._compiled and not any(shutil.which(name) for name in ("gcc", "cc", "clang")):
            return "torch.compile needs a C compiler; apt-get install gcc, or use --backend torch_cuda"
        return None

    def remark(self, precision: str) -> str | None:
        return None

    def build(self, model: Path, config: BuildConfig) -> bytes:
        _one_window(self.name, config)
        return program_bytes(self.name, model, config)

    @contextmanager
    def load(self, blob: bytes, config: BuildConfig) -> Iterator[Session]:
        import torch

        _one_window(self.name, config)
        with _without_tf32():
            config.log(self.name, f"{config.precision}, TF32 off in matrix products and convolutions")
            with reported(self.name, "loading the model"):
                module, shape = _prepared(load_program(blob), config.precision)
            if self._compiled:
                module = torch.compile(module, fullgraph=True, dynamic=False)
            begin = time.perf_counter()
            with reported(self.name, "running the model for the first time"), torch.inference_mode():
                logits = module(torch.zeros(shape, dtype=_type(config.precision), device=DEVICE))
                logits = logits.cpu()  # waits for it
            config.log(self.name, f"first run, with all that it compiles, {time.perf_counter() - begin:.1f} s")
            source = Tensor("image", shape, config.precision)
            target = Tensor("logits", tuple(logits.shape), config.precision)
            session = TorchCudaSession(self.name, module, source, target)
            try:
                yield session
            finally:
                del module, logits
                session.close()  # whoever holds it must not hold the weights
                with suppress(RuntimeError):  # a lost context has no memory to give back
                    torch.cuda.empty_cache()

    def layers(self, blob: bytes, config: BuildConfig, window: Float32, runs: int = 5) -> list[Layer]:
        """Eagerly: every operation with the type of its result, timed one by one.  Compiled: the graph as a whole,
        since Inductor's kernels are not the graph's operations any more.
        """
        import torch

        if self._compiled:
            return [Layer("graph", "torch.compile", config.precision, 1.0)]
        with _without_tf32(), reported(self.name, "timing the model"), torch.inference_mode():
            module, _ = _prepared(load_program(blob), config.precision)
            image = torch.from_numpy(window).to(DEVICE).to(_type(config.precision))
            return from_microseconds(_operations(module, image, runs))


def _prepared(program: Any, precision: str) -> tuple[Any, tuple[int, ...]]:
    """The program as a module on the GPU in `precision`, and its input's shape."""
    import torch
    from torch.export.passes import move_to_device_pass

    program = move_to_device_pass(program, DEVICE)
    (example,), _ = program.example_inputs
    half, single = torch.float16, torch.float32
    if precision == "fp16":  # tensors that are neither parameters nor buffers, which `half` would not find
        for name, value in program.constants.items():
            if isinstance(value, torch.Tensor) and value.dtype is single:
                program.constants[name] = value.to(half)
    module = program.module()
    for part in module.modules():
        if not isinstance(part, torch.fx.GraphModule):
            continue
        for node in list(part.graph.nodes):
            # Checks of the traced shapes and types: the shape is checked before every run, the types change here.
            if node.target == "_guards_fn" or "_assert_tensor_metadata" in str(node.target):
                part.graph.erase_node(node)
            elif precision == "fp16":
                node.args, node.kwargs = torch.fx.node.map_aggregate(
                    (node.args, node.kwargs), lambda value: half if value is single else value
                )
        part.recompile()
    return (module.half() if precision == "fp16" else module), tuple(example.shape)


def _operations(module: Any, image: Any, runs: int) -> list[tuple[str, str, str, float]]:
    """(name, operation, type of the result, microseconds), the mean over `runs` runs after one that does not count."""
    import torch

    sums: dict[str, float] = {}
    found: dict[str, tuple[str, str]] = {}

    class Timed(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            _wait()
            begin = time.perf_counter()
            result = super().run_node(n)
            _wait()
            if n.op == "call_function" and isinstance(result, torch.Tensor):
                sums[n.name] = sums.get(n.name, 0.0) + 1e6 * (time.perf_counter() - begin)
                kind = str(n.target).removeprefix("aten.").split(".")[0]
                found[n.name] = kind, _NAMES.get(str(result.dtype), str(result.dtype).removeprefix("torch."))
            return result

    interpreter = Timed(module)
    for run in range(runs + 1):
        if run == 1:
            sums.clear()
        interpreter.run(image)
    return [(name, *found[name], time_us / runs) for name, time_us in sums.items()]


_NAMES = {f"torch.{torch_name}": name for name, (torch_name, _) in _TYPES.items()}


@contextmanager
def _without_tf32() -> Iterator[None]:
    """TF32 keeps ten bits of the mantissa; convolutions would use it by default."""
    import torch

    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def _one_window(name: str, config: BuildConfig) -> None:
    if config.batch != 1:
        raise DeployError(
            f"backend {name}: got a batch of {config.batch} windows, expected 1, as the program was exported; "
            "use --backend tensorrt for larger ones"
        )


def _driver() -> int:
    """The newest CUDA that the driver runs, 13000 for 13.0; torch does not tell."""
    version = ctypes.c_int()
    if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
        raise DeployError("GPU: the driver does not tell its version; look at nvidia-smi")
    return version.value


def _wait() -> None:
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _type(precision: str) -> Any:
    import torch

    return getattr(torch, _TYPES[precision][0])


eager = TorchCudaBackend("torch_cuda", compiled=False)
compiled = TorchCudaBackend("torch_compile", compiled=True)
