"""Modules of TensorRT's shape, one for each release that the adapter must work on.

What matters is which names exist: everything else raises AttributeError, on reading and on setting, as pybind11 does.
Every call is recorded.  "ONNX files" are JSON: see `graph`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.engines.fake_tensorrt_names import SHAPES, Member, enum_of


@dataclass
class Behaviour:
    """What a call answers with, and what the logger then hears."""

    no_builder: bool = False
    no_plan: str = ""  # the error
    no_engine: str = ""
    no_context: str = ""
    refuses_to_run: str = ""
    parse_error: str = ""
    takes_cache: bool = True
    dla_cores: int = 0
    on_dla: tuple[str, ...] = ()
    inspector: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)


def graph(
    path: Path, layers: list[tuple[str, str, str, tuple[str, ...]]], shape: tuple[int, ...] = (1, 3, 8, 8)
) -> Path:
    """A "model" of layers (output, LayerType, DataType, inputs); from ``image`` to ``logits``."""
    path.write_text(json.dumps({"layers": layers, "shape": shape}))
    return path


def make(version: str, **behaviour: Any) -> Any:
    """The module; ``calls`` are (what, arguments), ``behaviour`` may be changed."""
    shape, how, calls = SHAPES[version], Behaviour(**behaviour), list[tuple[str, Any]]()

    def record(what: str, *arguments: Any) -> None:
        calls.append((what, arguments[0] if len(arguments) == 1 else arguments))

    class Strict:
        writable: tuple[str, ...] = ()

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_"):
                if name not in self.writable:
                    raise AttributeError(f"{type(self).__name__} of TensorRT {version} has no attribute {name}")
                record(f"{type(self).__name__}.{name}", str(value) if isinstance(value, Member) else value)
            object.__setattr__(self, name, value)

    def shouts(logger: Any, text: str) -> None:
        logger.log(sdk.ILogger.Severity.ERROR, text)

    class Tensor(Strict):
        writable = ("shape",)

        def __init__(self, name: str, dtype: str, size: tuple[int, ...]) -> None:
            object.__setattr__(self, "shape", size)
            self.__dict__.update(name=name, dtype=getattr(sdk.DataType, dtype))

    class Layer(Strict):
        writable = shape.layer

        def __init__(self, row: Any, known: dict[str, Tensor]) -> None:
            output, kind, dtype, inputs = row
            self._inputs = [known[name] for name in inputs]
            self._output = known[output] = Tensor(output, dtype, known["image"].shape)
            self.__dict__.update(
                name=output, type=Member("LayerType", kind, 0), num_inputs=len(inputs), num_outputs=1,
                get_input=lambda index: self._inputs[index], get_output=lambda index: self._output,
            )  # fmt: skip
            if "precision" in shape.layer:
                self.__dict__["set_output_type"] = lambda index, value: record("set_output_type", output, str(value))

    class Network(Strict):
        def __init__(self, flags: int) -> None:
            record("create_network", flags)
            self._layers: list[Layer] = []
            self.__dict__.update(num_inputs=1, num_outputs=1, num_layers=0)

        def fill(self, data: Any) -> None:
            known = {"image": Tensor("image", "FLOAT", tuple(data["shape"]))}
            self._image = known["image"]
            self._layers = [Layer(row, known) for row in data["layers"]]
            self.__dict__["num_layers"] = len(self._layers)

        def get_input(self, index: int) -> Tensor:
            return self._image

        def get_output(self, index: int) -> Tensor:
            output = self._layers[-1].get_output(0)
            return Tensor(output.name, str(output.dtype).split(".")[1], self._image.shape)

        def get_layer(self, index: int) -> Layer:
            return self._layers[index]

    class Parser(Strict):
        def __init__(self, network: Network, logger: Any) -> None:
            self._network = network
            self.__dict__["num_errors"] = 0

        def parse(self, data: bytes) -> bool:
            record("parse")
            if how.parse_error:
                self.__dict__["num_errors"] = 1
                return False
            self._network.fill(json.loads(data))
            return True

        def get_error(self, index: int) -> Any:
            error = {"desc": lambda: how.parse_error, "node": lambda: 7}
            if shape.modern:
                error |= {"node_name": lambda: "head/odd", "node_operator": lambda: "Mystery"}
            return SimpleNamespace(**error)

    class IBuilderConfig(Strict):
        writable = shape.config
        for _name in shape.config:
            vars()[_name] = None

        def set_flag(self, flag: Member) -> None:
            record("set_flag", str(flag).split(".")[1])

        def clear_flag(self, flag: Member) -> None:
            record("clear_flag", str(flag).split(".")[1])

        def set_memory_pool_limit(self, pool: Member, size: int) -> None:
            record("set_memory_pool_limit", str(pool), size)

        def create_timing_cache(self, data: bytes) -> Any:
            record("create_timing_cache", data)
            return SimpleNamespace(serialize=lambda: b"measured")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            taken = how.takes_cache or calls[-1] == ("create_timing_cache", b"")
            record("set_timing_cache", ignore_mismatch)
            return taken

        def get_timing_cache(self) -> Any:
            return self._cache

        def can_run_on_DLA(self, layer: Layer) -> bool:
            return str(layer.type).split(".")[1] in how.on_dla

    class Builder(Strict):
        def __init__(self, logger: Any) -> None:
            record("Builder")
            if how.no_builder:
                shouts(logger, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger
            self.__dict__["num_DLA_cores"] = how.dla_cores

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def build_serialized_network(self, network: Network, settings: IBuilderConfig) -> bytes | None:
            record("build_serialized_network")
            if how.no_plan:
                shouts(self._logger, how.no_plan)
                return None
            return b"the plan of TensorRT"

    class Context(Strict):
        writable = ("profiler",)

        def set_tensor_address(self, name: str, address: int) -> bool:
            record("set_tensor_address", name, address)
            return True

        def execute_async_v3(self, stream: int) -> bool:
            record("execute_async_v3", stream)
            if how.refuses_to_run:
                shouts(self._logger, how.refuses_to_run)
                return False
            if hasattr(self, "profiler"):
                for name, ms in how.times.items():
                    self.profiler.report_layer_time(name, ms)
            return True

    class Inspector(Strict):
        writable = ("execution_context",)

        def get_engine_information(self, form: Member) -> str:
            record("get_engine_information", str(form))
            return json.dumps(how.inspector)

    class Engine(Strict):
        def __init__(self, logger: Any) -> None:
            self._logger = logger
            self.__dict__["num_io_tensors"] = 2

        def get_tensor_name(self, index: int) -> str:
            return ("logits", "image")[index]  # in no promised order

        def get_tensor_mode(self, name: str) -> Member:
            return Member("TensorIOMode", {"image": "INPUT", "logits": "OUTPUT"}[name], 0)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return {"image": (1, 3, 8, 8), "logits": (1, 5, 2, 2)}[name]

        def get_tensor_dtype(self, name: str) -> Member:
            return sdk.DataType.FLOAT

        def create_execution_context(self) -> Context | None:
            record("create_execution_context")
            if how.no_context:
                shouts(self._logger, how.no_context)
                return None
            context = Context()
            context._logger = self._logger
            return context

        def create_engine_inspector(self) -> Inspector:
            return Inspector()

    class Runtime(Strict):
        writable = ("engine_host_code_allowed",)

        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: Any) -> Engine | None:
            record("deserialize_cuda_engine", bytes(plan))
            if how.no_engine:
                shouts(self._logger, how.no_engine)
                return None
            return Engine(self._logger)

    class Refitter(Strict):
        def __init__(self, engine: Engine, logger: Any) -> None: ...

        def refit_cuda_engine(self) -> bool:
            record("refit_cuda_engine")
            return True

    class OnnxParserRefitter(Strict):
        def __init__(self, refitter: Refitter, logger: Any) -> None: ...

        def refit_from_bytes(self, model: bytes) -> bool:
            record("refit_from_bytes", model)
            return True

    class ILogger:
        Severity = enum_of("Severity", ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"))

    class IProfiler: ...

    class IProgressMonitor: ...

    class Module(SimpleNamespace):
        __hash__ = object.__hash__  # type: ignore[assignment]

    sdk = Module(
        __version__=version, calls=calls, behaviour=how, Builder=Builder, OnnxParser=Parser, Runtime=Runtime,
        Refitter=Refitter, IBuilderConfig=IBuilderConfig, ILogger=ILogger, IProfiler=IProfiler,
        NetworkDefinitionCreationFlag=enum_of("NetworkDefinitionCreationFlag", shape.network),
        BuilderFlag=enum_of("BuilderFlag", shape.flags), DataType=enum_of("DataType", shape.types),
        HardwareCompatibilityLevel=enum_of("HardwareCompatibilityLevel", shape.hardware),
        MemoryPoolType=enum_of("MemoryPoolType", ("WORKSPACE", "TACTIC_DRAM")),
        ProfilingVerbosity=enum_of("ProfilingVerbosity", ("LAYER_NAMES_ONLY", "DETAILED", "NONE")),
        LayerInformationFormat=enum_of("LayerInformationFormat", ("ONELINE", "JSON")),
        TensorIOMode=enum_of("TensorIOMode", ("NONE", "INPUT", "OUTPUT")),
    )  # fmt: skip
    if shape.modern:
        sdk.IProgressMonitor, sdk.OnnxParserRefitter = IProgressMonitor, OnnxParserRefitter
    return sdk
