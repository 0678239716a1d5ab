"""A loaded engine: name-based I/O in GPU memory, on a stream of ours."""

from __future__ import annotations

import weakref
from math import prod
from pathlib import Path
from typing import Any

from engines.backends.tensorrt.engine_file import Header
from engines.backends.tensorrt.messages import errors_of, load_error, logger_of, no_kernels, one_line
from engines.backends.tensorrt.network import file_for, model_sha256
from engines.backends.tensorrt.runtime_cache import CompiledAtRunTime
from engines.backends.tensorrt.sdk import name_of
from engines.contract import Float32, Tensor, packed
from engines.errors import DeployError
from engines.gpu.context import CudaGpu
from engines.gpu.host_copies import DTYPES, HostRun

_DTYPES = {"FLOAT": "fp32", "HALF": "fp16"}


class _Context:
    """An execution context, by the tensors of its engine.  engines.contract.DeviceSession, but for `another`."""

    _title: str
    _gpu: CudaGpu
    _places: dict[str, int]
    _host: HostRun
    input: Tensor
    output: Tensor
    context: Any
    logger: Any

    @property
    def capturable(self) -> bool:
        """TensorRT's engines of fixed shapes can be recorded; TensorRT-RTX is asked."""
        ask = getattr(self.context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(self._gpu.stream))

    def enqueue(self, source: int, target: int, stream: int) -> None:
        for name, address in ((self.input.name, source), *((name, target + at) for name, at in self._places.items())):
            if not self.context.set_tensor_address(name, address):
                raise self._refused(f"take the address of {name}")
        if not self.context.execute_async_v3(stream):
            raise self._refused("run the engine")

    def run(self, windows: Float32) -> Float32:
        return self._host.run(windows)

    def _refused(self, what: str) -> DeployError:
        reason = (errors_of(self.logger) or ["it gave no reason"])[-1]
        return DeployError(f"{self._title}: cannot {what}: {reason}; build the bundle again here")


class _Beside(_Context):
    """One more context of a session's engine, with device memory of its own."""

    def __init__(self, first: TensorRTSession, context: Any) -> None:
        self._title, self._gpu, self._places = first._title, first._gpu, first._places
        self.input, self.output, self.logger = first.input, first.output, first.logger
        self._first, self.context, self._host = first, context, HostRun(first._gpu, self)

    @property
    def runtime_cache(self) -> bytes:
        return self._first.runtime_cache

    def another(self) -> _Beside:
        return self._first.another()

    def close(self) -> None:
        self._host.close()
        self.context = None


class TensorRTSession(_Context):
    """One engine with one execution context, or more: each with device memory of its own, so that NVIDIA's guide lets
    them run side by side ("Multi-Streaming").  engines.contract.DeviceSession.

    Raises DeployError when the SDK refuses the plan.  header and plan have been checked.
    runtime_cache: see BuildConfig.
    """

    def __init__(
        self, sdk: Any, title: str, header: Header, plan: memoryview, model: Path | None, gpu: CudaGpu,
        runtime_cache: bytes = b"",
    ) -> None:  # fmt: skip
        self._sdk, self._title, self._gpu = sdk, title, gpu
        self._runtime: Any = None
        self.engine: Any = None
        self.context: Any = None
        self._compiled = CompiledAtRunTime(sdk, runtime_cache)
        self._host = HostRun(gpu, self)
        self._beside = weakref.WeakSet[_Beside]()
        self.logger = logger_of(sdk)
        self.logger.messages.clear()
        try:
            self._open(header, plan, model)
        except BaseException:
            self.close()  # before the GPU is: the error may be held for longer
            raise

    @property
    def runtime_cache(self) -> bytes:
        return self._compiled.found()

    def another(self) -> _Beside:
        self.logger.messages.clear()
        context = self._compiled.context_of(self.engine)
        if context is None:
            raise load_error(self._title, "making one more execution context", self.logger)
        beside = _Beside(self, context)
        self._beside.add(beside)
        return beside

    def close(self) -> None:
        """Free everything.  Contexts go before the engine, and that before the runtime."""
        for beside in self._beside:
            beside.close()
        self._host.close()
        self.context = None
        self._compiled.close()
        self.engine = None
        self._runtime = None

    def _made(self, kind: str, *given: Any) -> Any:
        """An object of the SDK's class `kind`."""
        try:
            return getattr(self._sdk, kind)(*given, self.logger)
        except (TypeError, RuntimeError) as error:  # pybind11's answer to a constructor that returned nothing
            reason = errors_of(self.logger) or [str(error)]
            plain = DeployError(
                f"{self._title}: makes no {kind}: {one_line(reason[-1])}; look at nvidia-smi, and run doctor"
            )
            raise no_kernels(self._title, reason) or plain from error

    def _open(self, header: Header, plan: memoryview, model: Path | None) -> None:
        self._runtime = self._made("Runtime")
        if header.options.version_compatible:
            self._runtime.engine_host_code_allowed = True  # the caller has asked whether the user allows it
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise load_error(self._title, "loading the engine", self.logger)
        self.input, self.output, self._places = self._tensors()
        if header.options.strip_weights:
            self._refit(header, model)
        self.context = self._compiled.context_of(self.engine)
        if self.context is None:
            raise load_error(self._title, "making an execution context", self.logger)

    def _refit(self, header: Header, model: Path | None) -> None:
        """Give an engine without weights those of the bundle's graph."""
        missing = "no graph"
        if model is not None:
            missing = f"another {model.name}" if model.is_file() else f"no {model.name}"
        if model is None or not model.is_file() or model_sha256(model) != header.model_sha256:
            raise DeployError(
                f"{self._title}: the engine has no weights of its own, and {missing} to take them from; build the "
                "bundle again"
            )
        refitter = self._made("Refitter", self.engine)
        parser = self._made("OnnxParserRefitter", refitter)
        if not parser.refit_from_bytes(file_for(model, self.input.shape[0]), str(model)):
            reason = one_line(parser.get_error(0).desc()) if parser.num_errors else "it gave no reason"
            raise DeployError(
                f"{self._title}: cannot take the weights of {model.name}: {reason}; build the bundle again"
            )
        if not refitter.refit_cuda_engine():
            raise load_error(self._title, f"taking the weights of {model.name}", self.logger)

    def _tensors(self) -> tuple[Tensor, Tensor, dict[str, int]]:
        """The input, the output, and by name where each of the engine's outputs begins in that, in bytes."""
        found: dict[str, list[Tensor]] = {"INPUT": [], "OUTPUT": []}
        for index in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(index)
            dtype = name_of(self.engine.get_tensor_dtype(name))
            shape = tuple(int(d) for d in self.engine.get_tensor_shape(name))
            found[name_of(self.engine.get_tensor_mode(name))].append(Tensor(name, shape, _DTYPES.get(dtype, dtype)))
        outputs = sorted(found["OUTPUT"], key=lambda tensor: tensor.name)
        kinds = {tensor.dtype for tensor in outputs}
        if len(found["INPUT"]) != 1 or len(kinds) != 1 or (len(outputs) > 1 and not kinds <= {*DTYPES}):
            raise DeployError(
                f"{self._title}: the engine has {len(found['INPUT'])} inputs and {len(outputs)} outputs of "
                f"{len(kinds)} types, expected one input, and outputs of one type; build it again"
            )
        if len(outputs) == 1:
            return found["INPUT"][0], outputs[0], {outputs[0].name: 0}
        offsets, total = packed([prod(tensor.shape) for tensor in outputs])
        bytes_each = DTYPES[outputs[0].dtype].itemsize
        places = {tensor.name: bytes_each * at for tensor, at in zip(outputs, offsets, strict=True)}
        return found["INPUT"][0], Tensor("maps", (total,), outputs[0].dtype), places
