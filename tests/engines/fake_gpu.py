"""A GPU for tests of what runs on one: addresses, and a record of what was asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from engines.device.base import GpuInfo
from engines.errors import GpuLostError

ORIN = GpuInfo("Orin", (8, 7), 12060, 8 * 2**30, True)
H100 = GpuInfo("NVIDIA H100 80GB HBM3", (9, 0), 13000, 80 * 2**30, False)


@dataclass
class FakeMemory:
    address: int
    size: int

    def free(self) -> None: ...


@dataclass
class FakeGpu:
    info: GpuInfo
    free: int = 4 * 2**30
    stream: int = 0xABC0
    lost: bool = False
    calls: list[Any] = field(default_factory=list)
    _next: int = 0x10000

    def allocate(self, size: int) -> FakeMemory:
        self._next += 0x10000
        return FakeMemory(self._next, size)

    def free_memory(self) -> int:
        return self.free

    def upload(self, address: int, array: np.ndarray) -> None:
        self.calls.append(("upload", address))

    def download(self, array: np.ndarray, address: int) -> None:
        self.calls.append(("download", address))
        array.fill(0.5)

    def synchronize(self) -> None:
        if self.lost:
            raise GpuLostError("GPU: lost; start the program again")

    def install(self, patch: pytest.MonkeyPatch) -> FakeGpu:
        """Makes this the GPU that engines.device.cuda finds."""
        from engines.device import cuda

        @contextmanager
        def open_gpu() -> Iterator[FakeGpu]:
            yield self

        patch.setattr(cuda, "open_gpu", open_gpu)
        patch.setattr(cuda, "gpu_info", lambda: self.info)
        patch.setattr(cuda, "unavailable", lambda: None)
        return self
