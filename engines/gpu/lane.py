"""One execution context with its fixed memory, and the graph of gather, engine and scatter that is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np

from engines.contract import DeviceSession, Float32
from engines.errors import DeployError, GpuLostError
from engines.gpu import kernels
from engines.gpu.context import CudaGpu
from engines.gpu.graph import Graph
from engines.gpu.host_copies import DTYPES
from engines.gpu.memory import CudaEvent, CudaMemory, CudaStream, Kernels
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling

RING = 4096  # places on their way to the GPU at most


class Lane:
    """stream: that its batches run on; whoever changes it waits for the GPU first.  done: when the last of them did.

    own: whether it closes the session.  Raises DeployError where there is no memory for it.
    """

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, code: Kernels, own: bool
    ) -> None:
        self.gpu, self.session, self._code, self._own = gpu, session, code, own
        self.stream, self.done = gpu.main, gpu.event()
        source, target = session.input, session.output
        batch, elements = source.shape[0], prod(target.shape[1:])
        self._graph: Graph | None = None
        self._sent, self._turns = 0, max(2, RING // batch // 2 * 2)
        self._held: list[CudaMemory] = []
        self._copied: list[CudaEvent] = []  # of each half of the ring, when all was copied
        try:
            self._source = self._zeros(prod(source.shape) * DTYPES[source.dtype].itemsize)
            self._target = self._zeros(batch * elements * DTYPES[target.dtype].itemsize)
            self._places = self._zeros(batch * kernels.PLACE.itemsize)
            self._buffer = gpu.host_buffer((self._turns * batch * kernels.PLACE.itemsize,), np.uint8)
            self._ring = self._buffer.array.view(kernels.PLACE).reshape(self._turns, batch)
            self._copied = [gpu.event(), gpu.event()]
        except BaseException:
            self.close()
            raise
        self._gather = kernels.gather(
            self._places, batch, (source.shape[2], source.shape[3]), spec.mean, spec.std, spec.order,
            padding=tiling.padding, out=self._source, dtype=DTYPES[source.dtype].name,
        )  # fmt: skip
        self._scatter = kernels.scatter(self._places, batch, self._target, elements, DTYPES[target.dtype].name)

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def send(self, places: Sequence[Any], stream: CudaStream) -> None:
        """Start bringing places to the GPU.  The ring is written again only once it was copied."""
        turn, half = self._sent % self._turns, self._turns // 2
        if turn % half == 0 and self._sent >= self._turns:
            self.gpu.finish(self._copied[turn // half])
        row = self._ring[turn]
        row[:] = np.zeros((), kernels.PLACE)
        for index, place in enumerate(places):
            row[index] = place
        self.gpu.copy_in(self._places, row, stream)
        self._sent += 1
        if (turn + 1) % half == 0:
            self.gpu.mark(self._copied[turn // half], stream)

    def replay(self, stream: CudaStream) -> None:
        """Start what was recorded."""
        assert self._graph is not None
        self.gpu.replay(self._graph, stream)

    def start_parts(
        self, stream: CudaStream, told: Callable[[str], None] = lambda part: None, recording: bool = False
    ) -> None:
        """Start it part by part.  told: of each part that was started."""
        self.gpu.launch(self._code, self._gather, stream)
        told("gather")
        self.enqueue(stream, recording)
        self.gpu.launch(self._code, self._scatter, stream)
        told("engine")

    def enqueue(self, stream: CudaStream, recording: bool = False) -> None:
        """Start the engine alone."""
        try:
            self.session.enqueue(self._source, self._target, stream.handle)
        except GpuLostError:
            raise
        except DeployError:
            if not recording:
                self.gpu.synchronize()  # a lost context is told as such, whatever the SDK says
            raise

    def run_once(self) -> None:
        """On no windows, and wait for it.  Raises DeployError, such as where an engine takes memory only now."""
        self.send([], self.gpu.main)
        self.start_parts(self.gpu.main)
        self.gpu.synchronize()

    def record(self) -> None:
        """After it has run once, as SDKs ask for.  Raises CaptureRefusedError."""
        self.run_once()
        self._graph = self.gpu.record(lambda: self.start_parts(self.gpu.main, recording=True))

    def record_alone(self, place: np.ndarray[Any, np.dtype[np.void]]) -> None:
        """The engine, of a window that is gathered once.  Raises CaptureRefusedError."""
        self.gathered(place)
        self.enqueue(self.gpu.main)
        self.gpu.synchronize()
        self._graph = self.gpu.record(lambda: self.enqueue(self.gpu.main, recording=True))

    def gathered(self, place: np.ndarray[Any, np.dtype[np.void]]) -> Float32:
        """The engine's input, gathered of one place: (N, C, h, w) float32.  Nothing of it is at work meanwhile."""
        self.send(list(place), self.gpu.main)
        self.gpu.launch(self._code, self._gather)
        windows = np.empty(self.session.input.shape, DTYPES[self.session.input.dtype])
        self.gpu.download(windows, self._source)
        widened: Float32 = windows.astype(np.float32)
        return widened

    def close(self) -> None:
        """Free everything, once what was started is done.  Does not raise after the GPU was lost."""
        with suppress(DeployError):
            self.gpu.synchronize()
        if self._graph is not None:
            self._graph.free()
            self._graph = None
        self._copied.clear()
        while self._held:
            self._held.pop().free()
        if hasattr(self, "_buffer"):
            self._buffer.free()
        if self._own:
            self.session.close()

    def _zeros(self, size: int) -> int:
        memory = self.gpu.allocate(size)
        self._held.append(memory)
        self.gpu.clear(memory.address, size)
        return memory.address
