"""Windows on a GPU, of any images, in batches: gathered, inferred and handed out by one graph that is recorded once.

The graph reads and writes fixed memory: an engine's input, its output, and a small buffer of places, which says of each
window where its pixels lie and where its logits go.  So it serves every image size, strips, and batches of many images.

Where a second execution context is there, batches take turns in two lanes, each with a stream, fixed memory and a graph
of its own.  Two rules order them: a batch waits for what its jobs say that their windows need, and main, where all else
runs, comes after every batch that was started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from engines.contract import DeviceSession, Float32, Log
from engines.errors import DeployError, GpuLostError
from engines.gpu.context import CudaGpu
from engines.gpu.graph import CaptureRefusedError, missing
from engines.gpu.host_copies import DTYPES
from engines.gpu.lane import Lane
from engines.gpu.memory import CudaEvent, Kernels
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling

Place = np.ndarray[Any, np.dtype[np.void]]


class Job(Protocol):
    """Who windows are run for."""

    def needs(self, count: int) -> Iterable[CudaEvent]:
        """What its next `count` windows wait for: their pixels, and that nobody reads the logits that were there."""

    def started(self, count: int) -> None:
        """So many more of its windows, in the order of `add`, have been started; main comes after them."""

    def failed(self, error: DeployError) -> None:
        """Some of its windows could not be started, and none after them will be."""

    def mark(self, part: str) -> None:
        """What was started since the last mark is of this part."""


class Windows:
    """batch: windows per run.  window_bytes: the logits of one.  ahead: windows that may be at work at once.

    one_because: why there is one lane where two were asked for, or "".  spare_bytes: of the GPU, that the contexts
    beside the first took.
    log: told (``graph``, why) when nothing can be recorded, (``contexts``, why) where there is one for two.
    """

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, code: Kernels, log: Log
    ) -> None:  # fmt: skip
        self.gpu, self._session, self._log = gpu, session, log
        source, target = session.input, session.output
        self.batch, self.size = source.shape[0], (source.shape[2], source.shape[3])
        self.window_bytes = prod(target.shape[1:]) * DTYPES[target.dtype].itemsize
        self.one_because, self.spare_bytes = "", 0
        self._parts = False
        self._no_graph = missing()
        if self._no_graph:
            log("graph", f"windows are not recorded: {self._no_graph}")
        self._pending: list[tuple[Any, Job]] = []
        self._turn = 0
        self._make: Callable[[DeviceSession, bool], Lane] = lambda session, own: Lane(
            gpu, session, spec=spec, tiling=tiling, code=code, own=own
        )
        self._alone: Lane | None = None  # for the engine without gather and scatter
        self._wants_alone = True  # until it is refused, or given back
        self._lanes = [self._make(session, False)]

    @property
    def lanes(self) -> int:
        return len(self._lanes)

    @property
    def spare(self) -> bool:
        """Whether there are contexts beside the first, whose memory `give_back` frees."""
        return self.lanes > 1 or self._alone is not None

    @property
    def ahead(self) -> int:
        return self.batch * self.lanes

    @property
    def parts(self) -> bool:
        """Start the parts one by one, on main, and tell the job."""
        return self._parts

    @parts.setter
    def parts(self, value: bool) -> None:
        self.flush()
        if self.lanes > 1:
            self.gpu.synchronize()
        self._parts = value

    def widen(self) -> None:
        """A second lane.  Where it is refused `one_because` says why, and so does the log.  Raises GpuLostError.

        It runs once before it is relied on: an engine may take memory only then.
        """
        if self.lanes > 1:
            return
        self.flush()
        free = self.gpu.free_memory()
        try:
            session = self._session.another()
            try:
                self._lanes.append(self._make(session, True))
            except BaseException:
                session.close()
                raise
            for number, lane in enumerate(self._lanes):
                lane.stream = self.gpu.beside(number)
            if self.unrecorded() is None:
                self._prepare(self._lanes[1])
            else:
                self._lanes[1].run_once()
            self.one_because = ""
            self.spare_bytes += max(0, free - self.gpu.free_memory())
        except GpuLostError:
            raise
        except DeployError as error:
            self.narrow(str(error))
        self.gpu.synchronize()

    def narrow(self, reason: str) -> None:
        """One lane, and nothing for the engine alone.  reason: for the log, "" for none."""
        self.flush()
        self.gpu.synchronize()
        for lane in filter(None, (*self._lanes[1:], self._alone)):
            lane.close()
        self._alone = None
        del self._lanes[1:]
        self._lanes[0].stream = self.gpu.main
        if reason and reason != self.one_because:
            self._log("contexts", f"one execution context, not two: {reason}")
        self.one_because, self.spare_bytes = reason, 0

    def give_back(self, reason: str) -> None:
        """All that is spare, for good.  reason: for the log, where a second lane is."""
        self._wants_alone = False
        self.narrow(reason if self.lanes > 1 else self.one_because)

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

    def first(self, place: Place) -> Float32:
        """The engine's input, gathered of one place: (N, C, h, w) float32."""
        self.flush()
        return self._lanes[0].gathered(place)

    def engine_ms(self, place: Place) -> float:
        """Of one run of the engine alone on a window, by events; where it can be, a graph of a context of its own."""
        self.flush()
        lane = self._lane_alone(place)
        start, end = self.gpu.event(timed=True), self.gpu.event(timed=True)
        for _ in range(2):  # what an engine sets up first is not timed
            self.gpu.mark(start, self.gpu.main)
            if lane is self._alone:
                lane.replay(self.gpu.main)
            else:
                lane.enqueue(self.gpu.main)
            self.gpu.mark(end, self.gpu.main)
        self.gpu.finish(end)
        return 1e3 * self.gpu.seconds(start, end)

    def batch_ms(self, batches: int, lanes: int) -> float:
        """Of one batch where so many are started at once in as many of the lanes, by events.

        They are of no windows, which the engine takes as long for.
        """
        self.flush()
        for lane in self._lanes:
            self._prepare(lane)
        start, end = self.gpu.event(timed=True), self.gpu.event(timed=True)
        self.gpu.mark(start, self.gpu.main)
        for turn in range(batches):
            self._run(self._lanes[turn % lanes], [], [start], ())
        self.gpu.mark(end, self.gpu.main)
        self.gpu.finish(end)
        return 1e3 * self.gpu.seconds(start, end) / batches

    def close(self) -> None:
        """Free everything, once what was started is done.  Does not raise after the GPU was lost."""
        self._pending.clear()
        for lane in filter(None, (self._alone, *reversed(self._lanes))):
            lane.close()
        self._alone = None
        self._lanes.clear()

    def _lane_alone(self, place: Place) -> Lane:
        """With `place` gathered.  The graph that serves frames has its context to itself, as NVIDIA's guide has it."""
        if self._alone is None and self._wants_alone and self.unrecorded() is None:
            free = self.gpu.free_memory()
            try:
                self._alone = self._make(self._session.another(), True)
                self._alone.record_alone(place)
                self.spare_bytes += max(0, free - self.gpu.free_memory())
            except GpuLostError:
                raise
            except DeployError as error:
                if self._alone is not None:
                    self._alone.close()
                self._alone, self._wants_alone = None, False
                self._log("contexts", f"the engine alone is timed without a graph: {error}")
        lane = self._alone or self._lanes[0]
        lane.gathered(place)
        return lane

    def _launch(self) -> None:
        some, self._pending = self._pending[: self.batch], self._pending[self.batch :]
        jobs: dict[int, tuple[Job, int]] = {}
        for _, job in some:
            jobs[id(job)] = job, jobs.get(id(job), (job, 0))[1] + 1
        try:
            needs = [event for job, count in jobs.values() for event in job.needs(count)] if self.lanes > 1 else []
            lane = self._lanes[0 if self.parts else self._turn % self.lanes]
            self._turn += 1
            self._run(lane, [place for place, _ in some], needs, [job for job, _ in jobs.values()])
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

    def _run(self, lane: Lane, places: Sequence[Any], needs: Iterable[CudaEvent], jobs: Sequence[Job]) -> None:
        """Start a batch."""
        self._prepare(lane)
        stream = self.gpu.main if self.parts else lane.stream
        if stream is not self.gpu.main:
            for event in dict.fromkeys(needs):
                self.gpu.follow(stream, event)
        lane.send(places, stream)
        if lane.recorded and not self.parts:
            lane.replay(stream)
        else:
            lane.start_parts(stream, lambda part: self._told(part, jobs))
        if stream is not self.gpu.main:
            self.gpu.mark(lane.done, stream)
            self.gpu.follow(self.gpu.main, lane.done)

    def _told(self, part: str, jobs: Sequence[Job]) -> None:
        for job in jobs if self.parts else ():
            job.mark(part)

    def _prepare(self, lane: Lane) -> None:
        """Before its first batch: an engine that has run once is recorded."""
        if lane.recorded or self.unrecorded() is not None:
            return
        try:
            lane.record()
        except CaptureRefusedError as error:
            self._no_graph = str(error)
            self._log("graph", f"windows are not recorded: {error}")
