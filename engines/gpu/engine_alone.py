"""The engine alone on a GPU, between memory of its own: what is timed so has no copies in it."""

from __future__ import annotations

from math import prod
from types import TracebackType

import numpy as np

from engines.contract import DeviceSession, Float32
from engines.gpu.context import CudaGpu
from engines.gpu.host_copies import DTYPES
from engines.gpu.memory import CudaMemory


class EngineAlone:
    """Holds one batch of windows on the GPU.  Use in a `with` block.  Raises DeployError as GPU and session do.

    windows: (N, 3, h, w) float32, the engine's input.
    """

    def __init__(self, gpu: CudaGpu, session: DeviceSession, windows: Float32) -> None:
        self._gpu, self._session = gpu, session
        self._held: list[CudaMemory] = []
        output = session.output
        source = np.ascontiguousarray(windows, DTYPES[session.input.dtype])
        try:
            for size in (source.nbytes, prod(output.shape) * DTYPES[output.dtype].itemsize):
                self._held.append(gpu.allocate(size))
            gpu.upload(self._held[0].address, source)
        except BaseException:
            self.free()
            raise

    def __enter__(self) -> EngineAlone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def run(self) -> None:
        """Once, and wait for it."""
        source, target = self._held
        self._session.enqueue(source.address, target.address, self._gpu.stream)
        self._gpu.synchronize()

    def free(self) -> None:
        while self._held:
            self._held.pop().free()
