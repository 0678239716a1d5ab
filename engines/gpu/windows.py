"""Windows on a GPU, of any images, in batches: gathered, inferred and handed out by one graph that is recorded once.

The graph reads and writes fixed memory: an engine's input, its output, and a small buffer of places, which says of each
window where its pixels lie and where its logits go.  So it serves every image size, strips, and batches of many images.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any, Protocol

import numpy as np

from engines.contract import DeviceSession, Float32, Log
from engines.errors import DeployError, GpuLostError
from engines.gpu import kernels
from engines.gpu.context import CudaGpu
from engines.gpu.graph import CaptureRefusedError, Graph, missing
from engines.gpu.host_copies import DTYPES
from engines.gpu.memory import CudaEvent, CudaMemory, Kernels
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling

RING = 4096  # places on their way to the GPU at most


class Job(Protocol):
    """Who windows are run for."""

    def started(self, count: int) -> None:
        """So many more of its windows, in the order of `add`, have been started on main."""

    def failed(self, error: DeployError) -> None:
        """Some of its windows could not be started, and none after them will be."""

    def mark(self, part: str) -> None:
        """What was started since the last mark is of this part."""


class Windows:
    """One execution context with its fixed memory.  batch: windows per run.  window_bytes: the logits of one.

    parts: start the parts one by one, and tell the job.  log: told (``graph``, why) when nothing can be recorded.
    """

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, code: Kernels, log: Log
    ) -> None:  # fmt: skip
        self.gpu, self._session, self._code, self._log = gpu, session, code, log
        source, target = session.input, session.output
        self.batch, self.size = source.shape[0], (source.shape[2], source.shape[3])
        self._elements = prod(target.shape[1:])
        self.window_bytes = self._elements * DTYPES[target.dtype].itemsize
        self.parts = False
        self._no_graph = missing()
        if self._no_graph:
            log("graph", f"windows are not recorded: {self._no_graph}")
        self._graph: Graph | None = None
        self._alone: Graph | None = None  # the engine without gather and scatter
        self._pending: list[tuple[Any, Job]] = []
        self._launched = 0
        self._held: list[CudaMemory] = []
        self._turns = max(2, RING // self.batch // 2 * 2)
        self._copied: list[CudaEvent] = []  # of each half of the ring, when all was copied
        try:
            self._source = self._zeros(prod(source.shape) * DTYPES[source.dtype].itemsize)
            self._target = self._zeros(self.batch * self.window_bytes)
            self._places = self._zeros(self.batch * kernels.PLACE.itemsize)
            self._buffer = gpu.host_buffer((self._turns * self.batch * kernels.PLACE.itemsize,), np.uint8)
            self._ring = self._buffer.array.view(kernels.PLACE).reshape(self._turns, self.batch)
            self._copied = [gpu.event(), gpu.event()]
        except BaseException:
            self.close()
            raise
        self._gather = kernels.gather(
            self._places, self.batch, self.size, spec.mean, spec.std, spec.order, padding=tiling.padding,
            out=self._source, dtype=DTYPES[source.dtype].name,
        )  # fmt: skip
        self._scatter = kernels.scatter(
            self._places, self.batch, self._target, self._elements, DTYPES[target.dtype].name
        )

    def unrecorded(self) -> str | None:
        """Why windows are not replayed as a graph, None where they are."""
        if self.parts:
            return "the parts are timed one by one"
        if self._no_graph is None and not self._session.capturable:
            return "the engine cannot be recorded"
        return self._no_graph

    def add(self, places: Sequence[Any], job: Job) -> None:
        """Windows at `places`, records of kernels.PLACE.  Whole batches are started; the rest waits for more."""
        self._pending += [(place, job) for place in places]
        while len(self._pending) >= self.batch:
            self._launch()

    def flush(self) -> None:
        """Start what waits; the rest of the batch is run for nothing."""
        if self._pending:
            self._launch()

    def drop(self, job: Job) -> None:
        """Forget what waits of it."""
        self._pending = [each for each in self._pending if each[1] is not job]

    def first(self, place: np.ndarray[Any, np.dtype[np.void]]) -> Float32:
        """The engine's input, gathered of one place: (N, C, h, w) float32."""
        self.flush()
        self._send(list(place))
        self.gpu.launch(self._code, self._gather)
        windows = np.empty(self._session.input.shape, DTYPES[self._session.input.dtype])
        self.gpu.download(windows, self._source)
        widened: Float32 = windows.astype(np.float32)
        return widened

    def engine_ms(self) -> float:
        """Of one run of the engine alone on what was gathered last, by events, as a graph where it can be recorded."""
        if self._alone is None and self.unrecorded() is None:
            with suppress(CaptureRefusedError):
                self._enqueue()
                self.gpu.synchronize()
                self._alone = self.gpu.record(self._enqueue)
        start, end = self.gpu.event(timed=True), self.gpu.event(timed=True)
        for _ in range(2):  # what an engine sets up first is not timed
            self.gpu.mark(start, self.gpu.main)
            if self._alone is None:
                self._enqueue()
            else:
                self.gpu.replay(self._alone)
            self.gpu.mark(end, self.gpu.main)
        self.gpu.finish(end)
        return 1e3 * self.gpu.seconds(start, end)

    def close(self) -> None:
        """Free everything, once what was started is done.  Does not raise after the GPU was lost."""
        self._pending.clear()
        with suppress(DeployError):
            self.gpu.synchronize()
        for graph in filter(None, (self._graph, self._alone)):
            graph.free()
        self._graph = self._alone = None
        self._copied.clear()
        while self._held:
            self._held.pop().free()
        if hasattr(self, "_buffer"):
            self._buffer.free()

    def _launch(self) -> None:
        some, self._pending = self._pending[: self.batch], self._pending[self.batch :]
        jobs: dict[int, tuple[Job, int]] = {}
        for _, job in some:
            jobs[id(job)] = job, jobs.get(id(job), (job, 0))[1] + 1
        try:
            self._prepare()
            self._send([place for place, _ in some])
            self._start([job for job, _ in jobs.values()])
        except DeployError as error:
            for job, _ in jobs.values():
                self._give_up(job, error)
            raise
        wrong: list[DeployError] = []
        for job, count in jobs.values():
            try:
                job.started(count)
            except DeployError as error:
                self._give_up(job, error)
                wrong.append(error)
        if wrong:
            raise wrong[0]

    def _give_up(self, job: Job, error: DeployError) -> None:
        self.drop(job)
        job.failed(error)

    def _prepare(self) -> None:
        """Before the first batch: an engine that has run once is recorded."""
        if self._graph is not None or self.unrecorded() is not None:
            return
        self._send([])  # places of nothing
        self._start_parts([])
        self.gpu.synchronize()
        try:
            self._graph = self.gpu.record(lambda: self._start_parts([], recording=True))
        except CaptureRefusedError as error:
            self._no_graph = str(error)
            self._log("graph", f"windows are not recorded: {error}")

    def _send(self, places: Sequence[Any]) -> None:
        """Start bringing places to the GPU.  The ring is written again only once it was copied."""
        turn, half = self._launched % self._turns, self._turns // 2
        if turn % half == 0 and self._launched >= self._turns:
            self.gpu.finish(self._copied[turn // half])
        row = self._ring[turn]
        row[:] = np.zeros((), kernels.PLACE)
        for index, place in enumerate(places):
            row[index] = place
        self.gpu.copy_in(self._places, row, self.gpu.main)
        self._launched += 1
        if (turn + 1) % half == 0:
            self.gpu.mark(self._copied[turn // half], self.gpu.main)

    def _start(self, jobs: Sequence[Job]) -> None:
        if self._graph is None or self.parts:
            self._start_parts(jobs)
        else:
            self.gpu.replay(self._graph)

    def _start_parts(self, jobs: Sequence[Job], recording: bool = False) -> None:
        timed = jobs if self.parts else ()
        self.gpu.launch(self._code, self._gather)
        for job in timed:
            job.mark("gather")
        self._enqueue(recording)
        self.gpu.launch(self._code, self._scatter)
        for job in timed:
            job.mark("engine")

    def _enqueue(self, recording: bool = False) -> None:
        try:
            self._session.enqueue(self._source, self._target, self.gpu.stream)
        except GpuLostError:
            raise
        except DeployError:
            if not recording:
                self.gpu.synchronize()  # a lost context is told as such, whatever the SDK says
            raise

    def _zeros(self, size: int) -> int:
        memory = self.gpu.allocate(size)
        self._held.append(memory)
        self.gpu.clear(memory.address, size)
        return memory.address
