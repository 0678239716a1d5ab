"""The engine alone: between a GPU's own memory, which here is a dictionary of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.contract import Float32, Tensor
from engines.errors import DeployError
from engines.gpu.engine_alone import EngineAlone

STREAM = 77


class _Memory:
    def __init__(self, gpu: _Gpu, address: int, size: int) -> None:
        self.address, self.size, self._gpu = address, size, gpu

    def free(self) -> None:
        del self._gpu.held[self.address]


class _Gpu:
    """limit: bytes that it has."""

    stream = STREAM

    def __init__(self, limit: int = 10**9) -> None:
        self.held: dict[int, np.ndarray[Any, Any]] = {}
        self.limit, self.waited, self.uploads = limit, 0, 0

    def allocate(self, size: int) -> _Memory:
        if sum(array.nbytes for array in self.held.values()) + size > self.limit:
            raise DeployError(f"GPU memory: got {size} bytes more, expected to fit")
        address = 256 * (len(self.held) + 1)
        self.held[address] = np.zeros(size, np.uint8)
        return _Memory(self, address, size)

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        self.uploads += 1
        self.held[address][:] = array.reshape(-1).view(np.uint8)

    def synchronize(self) -> None:
        self.waited += 1


class _Session:
    """Its logits are the first channel of its input."""

    input, output = Tensor("image", (1, 3, 8, 16), "fp16"), Tensor("logits", (1, 1, 8, 16), "fp32")
    capturable = True

    def __init__(self, gpu: _Gpu) -> None:
        self._gpu, self.runs, self.logits = gpu, 0, np.zeros(0, np.float32)

    def run(self, windows: Float32) -> Float32:
        raise AssertionError("this copies windows and logits")

    def enqueue(self, source: int, target: int, stream: int) -> None:
        assert stream == STREAM
        self.runs += 1
        windows = self._gpu.held[source].view(np.float16).reshape(self.input.shape)
        self.logits = self._gpu.held[target].view(np.float32)
        self.logits[:] = windows[:, :1].astype(np.float32).reshape(-1)


def test_the_engine_reads_and_writes_the_gpus_memory_and_leaves_none_behind() -> None:
    gpu = _Gpu()
    session = _Session(gpu)
    windows = np.random.default_rng(1).standard_normal(session.input.shape, np.float32)
    with EngineAlone(gpu, session, windows) as alone:
        alone.run()
        alone.run()
    assert (gpu.uploads, gpu.waited, session.runs) == (1, 2, 2)
    assert np.array_equal(session.logits, windows[:, 0].astype(np.float16).astype(np.float32).reshape(-1))
    assert not gpu.held


def test_no_memory_left_is_said_and_nothing_stays_taken() -> None:
    gpu = _Gpu(limit=800)
    session = _Session(gpu)
    with pytest.raises(DeployError, match="GPU memory"):
        EngineAlone(gpu, session, np.zeros(session.input.shape, np.float32))
    assert not gpu.held
