"""A machine with a GPU that is not there: its memory is the host's, and it says what was allocated and not freed."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends.tensorrt.backend import TensorRTFamily
from engines.backends.tensorrt.tensorrt import TensorRTBackend
from engines.backends.tensorrt.tensorrt_rtx import TensorRTRTXBackend
from engines.contract import BuildConfig, TensorRTOptions
from engines.errors import GpuLostError
from engines.gpu.info import GpuInfo
from tests.engines.backends.tensorrt.api.behaviour import BEHAVIOURS, json_with_batch
from tests.engines.backends.tensorrt.api.fakes import VERSIONS, fake

OLD = "8.6.1"  # whose networks are not strongly typed
TYPED = tuple(version for version in VERSIONS if version != OLD)
ORIN = GpuInfo("Orin", (8, 7), 12060, 8 << 30, True)
AMPERE = GpuInfo("NVIDIA A10", (8, 6), 13000, 24 << 30, False)
FREE = 4 << 30
WINDOW = np.linspace(-1, 1, 3 * 8 * 12, dtype=np.float32).reshape(1, 3, 8, 12)  # for `write_graph`'s graphs


class _Memory:
    def __init__(self, gpu: HostGpu, size: int) -> None:
        self._gpu, self.size = gpu, size
        self._buffer = ctypes.create_string_buffer(size + 256)
        self.address = -(-ctypes.addressof(self._buffer) // 256) * 256
        gpu.held += size

    def free(self) -> None:
        self._gpu.held -= self.size
        self.size = 0


class HostGpu:
    """What of engines.gpu.context.CudaGpu the engine needs."""

    stream = 77

    def __init__(self, info: GpuInfo) -> None:
        self.info, self.held, self.lost = info, 0, False

    def allocate(self, size: int) -> _Memory:
        return _Memory(self, size)

    def free_memory(self) -> int:
        return FREE

    def upload(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def synchronize(self) -> None:
        if self.lost:
            raise GpuLostError("GPU: lost; start the program again")


class Machine:
    """TensorRT `version` on `info`; a version ``rtx-...`` is one of TensorRT-RTX."""

    def __init__(self, patch: pytest.MonkeyPatch, version: str, info: GpuInfo) -> None:
        self.sdk, self.gpu = fake(version, BEHAVIOURS), HostGpu(info)
        self.sdk.world["gpu"] = info.name.encode()
        kind = TensorRTRTXBackend if version.startswith("rtx-") else TensorRTBackend
        self.backend: TensorRTFamily = kind()
        patch.setattr(kind, "sdk", lambda backend: self.sdk)
        patch.setattr("engines.backends.tensorrt.network.with_batch", json_with_batch)
        patch.setattr("engines.gpu.context.unavailable", lambda: None)
        patch.setattr("engines.gpu.context.gpu_info", lambda: info)

        @contextmanager
        def opened() -> Iterator[HostGpu]:
            yield self.gpu

        patch.setattr("engines.gpu.context.open_gpu", opened)


def tuned(**options: object) -> BuildConfig:
    """With these of TensorRT's options."""
    return BuildConfig(tensorrt=TensorRTOptions(**options))  # type: ignore[arg-type]


def write_graph(path: Path, precision: str = "fp32", batch: int = 1, **more: Any) -> Path:
    """A network of a few layers: convolution, LayerNorm with its statistics in FP32, product, classifier in FP32."""
    half = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "FLOAT"}[precision]
    shape, small = [batch, 3, 8, 12], [batch, 2, 4, 6]
    tensors = {
        "image": ["FLOAT", shape], "c": [half, shape], "a": [half, small], "n32": ["FLOAT", small],
        "n": ["FLOAT", small], "m16": [half, small], "m": [half, small], "w": ["FLOAT", [6]],
        "i": ["INT32", [2]], "l32": ["FLOAT", small], "logits": ["FLOAT", small],
    }  # fmt: skip
    layers = [
        _layer("weight", "CONSTANT", [], ["w"]),
        _layer("cast in", "CAST", ["image"], ["c"]), _layer("conv", "CONVOLUTION", ["c"], ["a"]),
        _layer("up", "CAST", ["a"], ["n32"]), _layer("norm", "NORMALIZATION", ["n32", "w"], ["n"]),
        _layer("down", "CAST", ["n"], ["m16"]), _layer("size", "CONSTANT", [], ["i"]),
        _layer("product", "MATRIX_MULTIPLY", ["m16"], ["m"]), _layer("up again", "CAST", ["m"], ["l32"]),
        _layer("classifier", "CONVOLUTION", ["l32"], ["logits"]),
    ]  # fmt: skip
    if precision == "int8":
        tensors |= {"q": ["INT8", small], "dq": ["FLOAT", small]}
        at = next(index for index, layer in enumerate(layers) if layer["name"] == "product")
        layers[at : at + 1] = [
            _layer("q", "QUANTIZE", ["m16"], ["q"]), _layer("dq", "DEQUANTIZE", ["q"], ["dq"]),
            _layer("product", "MATRIX_MULTIPLY", ["dq"], ["m"]),
        ]  # fmt: skip
    body = {"layers": layers, "tensors": tensors, "input": "image", "output": "logits", **more}
    path.write_text(json.dumps(body))
    return path


def _layer(name: str, kind: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {"name": name, "type": kind, "inputs": inputs, "outputs": outputs}
