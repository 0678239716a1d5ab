"""What the fakes do: a TensorRT that parses graphs written in JSON, and plans that are JSON too.

A graph: {"layers": [{"name", "type", "inputs": [tensor, ...], "outputs": [tensor, ...]}, ...], "tensors": {name: [type,
shape]}, "input": name, "output": name}.  The rules are those of NVIDIA's documentation: which flag a type needs where
networks are weakly typed, and that a strongly typed one takes none.
"""

from __future__ import annotations

import json
from typing import Any

from tests.engines.backends.tensorrt.api.fakes import make, say
from tests.engines.backends.tensorrt.api.runtime import (
    EngineInspector,
    ICudaEngine,
    IExecutionContext,
    IRuntimeCache,
    IRuntimeConfig,
    OnnxParserRefitter,
    Refitter,
    Runtime,
)


def json_with_batch(model: bytes, batch: int) -> bytes:
    """What engines.backends.onnx_bytes.with_batch does to an ONNX file."""
    graph = json.loads(model)
    graph["tensors"][graph["input"]][1][0] = batch
    graph["tensors"][graph["output"]][1] = None if graph.get("fixed") else [batch, *graph["tensors"]["logits"][1][1:]]
    return json.dumps(graph).encode()


class Builder:
    def _begin(self: Any, logger: Any) -> None:
        self._logger = logger
        if self._sdk.world.get("start_error"):
            say(self._sdk, logger, self._sdk.world["start_error"])
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self: Any, flags: int = 0) -> Any:
        names = [m.name for m in self._sdk.NetworkDefinitionCreationFlag if flags >> int(m) & 1]
        assert flags == sum(1 << int(self._sdk.NetworkDefinitionCreationFlag[name]) for name in names)
        self._sdk.world["network"] = names
        return make(self._sdk, "INetworkDefinition", _flags=names)

    def create_builder_config(self: Any) -> Any:
        return make(self._sdk, "IBuilderConfig", _flags={"TF32"}, _cache=None, _progress_monitor=None)

    def build_serialized_network(self: Any, network: Any, config: Any) -> bytes | None:
        sdk = self._sdk
        sdk.world["flags"] = config._flags
        failure = sdk.world.get("build_error") or _missing_flag(sdk, network, config)
        monitor = config._progress_monitor
        if monitor is not None:
            monitor.phase_start("Building", None, 3)
            for step in range(3):
                sdk.world.get("during", lambda: None)()
                if not monitor.step_complete("Building", step):
                    return None
            monitor.phase_finish("Building")
        else:
            sdk.world.get("during", lambda: None)()
        if failure:
            say(sdk, self._logger, failure)
            return None
        if config._cache is not None:
            config._cache._data += b"measured;"
        plan = {"layers": network._graph["layers"], "io": [network._input_state(), network._output_state()],
                "stripped": "STRIP_PLAN" in config._flags}  # fmt: skip
        return json.dumps(plan).encode()


def _missing_flag(sdk: Any, network: Any, config: Any) -> str | None:
    if "STRONGLY_TYPED" in network._flags or not hasattr(sdk.BuilderFlag, "FP16"):
        return None
    types = {tensor[0] for tensor in network._graph["tensors"].values()}
    kinds = {layer["type"] for layer in network._graph["layers"]}
    if "HALF" in types and "FP16" not in config._flags:
        return "Error Code 4: a tensor is FP16, but the builder flag FP16 is not set"
    if kinds & {"QUANTIZE", "DEQUANTIZE"} and "INT8" not in config._flags:
        return "Error Code 4: Network contains QDQ layers but the builder flag INT8 is not set"
    return None


class IBuilderConfig:
    def set_flag(self: Any, flag: Any) -> None:
        typed = "STRONGLY_TYPED" in self._sdk.world["network"]
        assert not (typed and flag.name in ("FP16", "INT8", "BF16", "OBEY_PRECISION_CONSTRAINTS")), flag
        self._flags.add(flag.name)

    def clear_flag(self: Any, flag: Any) -> None:
        self._flags.discard(flag.name)

    def set_memory_pool_limit(self: Any, pool: Any, pool_size: int) -> None:
        assert pool.name == "WORKSPACE"
        assert pool_size > 0

    def create_timing_cache(self: Any, serialized_timing_cache: bytes) -> Any:
        return make(self._sdk, "ITimingCache", _data=serialized_timing_cache)

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache._data and self._sdk.world.get("refuses_cache"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self: Any) -> Any:
        return self._cache

    def set_compute_capability(self: Any, compute_capability: Any, index: int) -> bool:
        self._sdk.world.setdefault("targets", []).append(compute_capability.name)
        return index == len(self._sdk.world["targets"]) - 1 < self.num_compute_capabilities


class ITimingCache:
    def serialize(self: Any) -> bytes:
        return bytes(self._data)


class OnnxParser:
    def _begin(self: Any, network: Any, logger: Any) -> None:
        assert "EXPLICIT_BATCH" not in self._sdk.NetworkDefinitionCreationFlag.__members__ or (
            network._flags or self._sdk.__version__ >= "10"
        ), "8.6 has implicit batches, which the ONNX parser refuses"
        self._network = network

    def parse(self: Any, model: bytes, path: str) -> bool:
        graph = json.loads(model)
        object.__setattr__(self._network, "_graph", graph)
        self._error = graph.get("error")
        return self._error is None

    def num_errors(self: Any) -> int:
        return int(self._error is not None)

    def get_error(self: Any, index: int) -> Any:
        return make(self._sdk, "ParserError", _error=self._error)


class ParserError:
    def desc(self: Any) -> str:
        return str(self._error["desc"])

    def node(self: Any) -> int:
        return int(self._error["node"])

    def node_name(self: Any) -> str:
        return str(self._error["name"])

    def node_operator(self: Any) -> str:
        return str(self._error["operator"])


class INetworkDefinition:
    def num_inputs(self: Any) -> int:
        return 1

    def num_outputs(self: Any) -> int:
        return 1

    def num_layers(self: Any) -> int:
        return len(self._graph["layers"])

    def get_layer(self: Any, index: int) -> Any:
        held = vars(self).setdefault("_held", {})
        if index not in held:
            held[index] = make(self._sdk, "ILayer", _network=self, _layer=self._graph["layers"][index], _outs={})
        return held[index]

    def get_input(self: Any, index: int) -> Any:
        return self._tensor(self._graph["input"])

    def get_output(self: Any, index: int) -> Any:
        return self._tensor(self._graph["output"])

    def _tensor(self: Any, name: str) -> Any:
        return make(self._sdk, "ITensor", _name=name, _graph=self._graph)

    def _input_state(self: Any) -> list[Any]:
        return [self._graph["input"], *self._graph["tensors"][self._graph["input"]]]

    def _output_state(self: Any) -> list[Any]:
        return [self._graph["output"], *self._graph["tensors"][self._graph["output"]]]


class ITensor:
    def dtype(self: Any) -> Any:
        return self._sdk.DataType[self._graph["tensors"][self._name][0]]

    def shape(self: Any) -> tuple[int, ...]:
        shape = self._graph["tensors"][self._name][1]
        if shape is None:
            raise RuntimeError("Could not get tensor shape.")  # what tensorrt_rtx 1.7.1 answered to a fixed Reshape
        return tuple(shape)


class ILayer:
    def name(self: Any) -> str:
        return str(self._layer["name"])

    def type(self: Any) -> Any:
        return self._sdk.LayerType[self._layer["type"]]

    def num_inputs(self: Any) -> int:
        return len(self._layer["inputs"])

    def num_outputs(self: Any) -> int:
        return len(self._layer["outputs"])

    def get_input(self: Any, index: int) -> Any:
        return self._network._tensor(self._layer["inputs"][index])

    def get_output(self: Any, index: int) -> Any:
        return self._network._tensor(self._layer["outputs"][index])

    def _set_precision(self: Any, value: Any) -> None:
        assert "STRONGLY_TYPED" not in self._network._flags
        self._sdk.world.setdefault("held", {})[self._layer["name"]] = value.name

    def set_output_type(self: Any, index: int, dtype: Any) -> None:
        assert "STRONGLY_TYPED" not in self._network._flags
        self._outs[index] = dtype.name
        self._sdk.world.setdefault("outputs", {})[self._layer["name"], index] = dtype.name


BEHAVIOURS = {
    cls.__name__: cls
    for cls in (
        Builder, IBuilderConfig, ITimingCache, OnnxParser, ParserError, INetworkDefinition, ITensor, ILayer, Runtime,
        ICudaEngine, IExecutionContext, EngineInspector, Refitter, OnnxParserRefitter, IRuntimeConfig, IRuntimeCache,
    )
}  # fmt: skip
