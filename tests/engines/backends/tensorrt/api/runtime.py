"""What the fakes do with a plan: load it, run it on host memory, describe it, refit it."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np

from tests.engines.backends.tensorrt.api.fakes import make, say

LAYER_TIME = 0.25  # milliseconds, of every layer that has no other


class Runtime:
    def _begin(self: Any, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self: Any, serialized_engine: Any) -> Any:
        if self._sdk.world.get("load_error"):
            say(self._sdk, self._logger, self._sdk.world["load_error"])
            return None
        plan = json.loads(bytes(serialized_engine))
        io = {name: (kind, shape) for name, kind, shape in plan["io"]}
        weights = not plan["stripped"]
        return make(self._sdk, "ICudaEngine", _io=io, _plan=plan, _logger=self._logger, _weights=weights)


class ICudaEngine:
    def num_io_tensors(self: Any) -> int:
        return len(self._io)

    def get_tensor_name(self: Any, index: int) -> str:
        return list(reversed(self._io))[index]  # the output first: no order is promised

    def get_tensor_mode(self: Any, name: str) -> Any:
        return self._sdk.TensorIOMode["INPUT" if name == next(iter(self._io)) else "OUTPUT"]

    def get_tensor_dtype(self: Any, name: str) -> Any:
        return self._sdk.DataType[self._io[name][0]]

    def get_tensor_shape(self: Any, name: str) -> tuple[int, ...]:
        return tuple(self._io[name][1])

    def create_runtime_config(self: Any) -> Any:
        return make(self._sdk, "IRuntimeConfig", _cache=None)

    def create_execution_context(self: Any, runtime_config: Any = None) -> Any:
        """With a runtime configuration what is compiled goes into its cache, or comes out of it."""
        assert self._weights, "weights are missing"
        if runtime_config is not None:
            assert runtime_config._cache is not None, "compiled, and not kept"
            if not runtime_config._cache._data:
                self._sdk.world["compiled"] = self._sdk.world.get("compiled", 0) + 1
                object.__setattr__(runtime_config._cache, "_data", b"code for " + self._sdk.world["gpu"])
        if self._sdk.world.get("context_error"):
            say(self._sdk, self._logger, self._sdk.world["context_error"])
            return None
        return make(self._sdk, "IExecutionContext", _engine=self, _at={}, _profiler=None)

    def create_engine_inspector(self: Any) -> Any:
        return make(self._sdk, "EngineInspector", _plan=self._plan)


class IRuntimeConfig:
    def create_runtime_cache(self: Any) -> Any:
        return make(self._sdk, "IRuntimeCache", _data=b"")

    def set_runtime_cache(self: Any, cache: Any = None) -> bool:
        self._cache = cache
        return True


class IRuntimeCache:
    def deserialize(self: Any, blob: Any) -> bool:
        """That of another GPU is refused, and leaves the cache as it was."""
        if bytes(blob) != b"code for " + self._sdk.world["gpu"]:
            return False
        self._data = bytes(blob)
        return True

    def serialize(self: Any) -> bytes:
        return bytes(self._data)


class IExecutionContext:
    def set_tensor_address(self: Any, name: str, memory: int) -> bool:
        assert name in self._engine._io
        assert memory % 256 == 0
        self._at[name] = memory
        return True

    def execute_async_v3(self: Any, stream_handle: int) -> bool:
        """Logits: the input's first channel, and twice that, at half of its size; addresses are of host memory."""
        if self._sdk.world.get("run_error"):
            say(self._sdk, self._engine._logger, self._sdk.world["run_error"])
            return False
        source, *targets = (_view(self._at[name], *self._engine._io[name]) for name in self._engine._io)
        if len(targets) > 1:  # maps, each of its number times the input's first value
            for number, target in enumerate(targets, 1):
                target[:] = number * source.flat[0]
            return True
        (target,) = targets
        target[:, 0] = source[:, 0, ::2, ::2]
        target[:, 1] = 2 * source[:, 0, ::2, ::2]
        every = {layer["name"]: LAYER_TIME for layer in self._engine._plan["layers"]}
        for name, time in self._sdk.world.get("times", every).items() if self._profiler is not None else ():
            self._profiler.report_layer_time(name, time)
        return True

    def is_stream_capturable(self: Any, stream: int) -> bool:
        return bool(self._sdk.world["capturable"])


def _view(address: int, kind: str, shape: list[int]) -> np.ndarray:
    dtype = np.dtype({"FLOAT": np.float32, "HALF": np.float16}[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class EngineInspector:
    def get_engine_information(self: Any, format: Any) -> str:
        assert format.name == "JSON"
        return json.dumps({"Layers": self._sdk.world.get("described", [])})


class Refitter:
    def _begin(self: Any, engine: Any, logger: Any) -> None:
        self._engine, self._given = engine, False

    def refit_cuda_engine(self: Any) -> bool:
        object.__setattr__(self._engine, "_weights", self._given)
        return bool(self._given)


class OnnxParserRefitter:
    def _begin(self: Any, refitter: Any, logger: Any) -> None:
        self._refitter = refitter

    def refit_from_bytes(self: Any, model: bytes, path: str) -> bool:
        json.loads(model)
        object.__setattr__(self._refitter, "_given", True)
        return True
