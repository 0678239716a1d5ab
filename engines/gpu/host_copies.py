"""For engines in GPU memory: answer `Session.run` with windows and logits on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.contract import DeviceSession, Float32, check_windows
from engines.errors import DeployError, GpuLostError
from engines.gpu.context import CudaGpu
from engines.gpu.memory import CudaMemory

DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}  # by what a session calls them


class HostRun:
    """Uploads windows, runs the engine, downloads logits.  Takes its memory with the first run."""

    def __init__(self, gpu: CudaGpu, session: DeviceSession) -> None:
        self._gpu, self._session = gpu, session
        self._memory: tuple[CudaMemory, CudaMemory] | None = None

    def run(self, windows: Float32) -> Float32:
        """What `Session.run` promises.  An engine in fp16 gets windows rounded to it, and its logits are widened."""
        source, target = self._session.input, self._session.output
        check_windows(windows, source.shape)
        given = np.ascontiguousarray(windows, DTYPES[source.dtype])
        logits = np.empty(target.shape, DTYPES[target.dtype])
        if self._memory is None:
            self._memory = self._gpu.allocate(given.nbytes), self._gpu.allocate(logits.nbytes)
        self._gpu.upload(self._memory[0].address, given)
        try:
            self._session.enqueue(self._memory[0].address, self._memory[1].address, self._gpu.stream)
        except GpuLostError:
            raise
        except DeployError:
            self._gpu.synchronize()  # a lost context is told as such, whatever the SDK says
            raise
        self._gpu.download(logits, self._memory[1].address)
        widened: Float32 = logits.astype(np.float32, copy=False)
        return widened

    def close(self) -> None:
        """Free the memory."""
        memory, self._memory = self._memory, None
        for block in memory or ():
            block.free()
