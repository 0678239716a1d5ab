"""One engine in a process of its own: tasks are handed to it, rows come back."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from engines.bundle import Manifest
from engines.errors import DeployError
from engines.files import keep_unfinished_in
from engines.fleet.watch import bytes_moved
from engines.folder_run import ImageJob, RunOptions, end
from engines.images.bands import Decoded
from engines.images.read import read_picture
from engines.machine.share import MachineShare
from engines.proof.first_run import prover
from engines.rasters.folder import run_rasters
from engines.report.rows import IMAGE, RASTER, InputRow
from engines.segmenter import Segmenter, open_segmenter
from engines.stream.behind import Behind
from engines.stream.flow import Done, Intake, flow
from engines.stream.threads import reading_threads, writing_threads
from engines.video.run import run_video
from engines.views.views import ImageViews

_PATIENCE = 0.2  # seconds that an idle worker waits before it looks whether a thread of its own has failed
_ANSWER = 1.0  # seconds within which a worker answers, with or without rows


@dataclass(frozen=True)
class Order:
    """What every worker is told once: the bundle and how it is opened, and what is written.  Paths are absolute.

    unfinished: a folder for what is not whole yet; see `keep_unfinished_in`.
    """

    bundle: Path
    threads: int
    host_code: bool
    threshold: float | None
    views: Callable[[Manifest], ImageViews]
    options: RunOptions
    unfinished: Path


@dataclass(frozen=True, slots=True)
class Task:
    """An image, a video, or of a raster the part (I, N) of its rows.  There may be millions of them."""

    index: int
    kind: str
    path: Path
    target: Path
    part: tuple[int, int] = (1, 1)

    def absolute(self) -> Task:
        """As another process has to be told."""
        return replace(self, path=self.path.absolute(), target=self.target.absolute())

    def failed(self, error: DeployError) -> InputRow:
        return InputRow.failed(self.kind, self.path, self.target, error)


@dataclass(frozen=True)
class WorkerReady:
    """What a worker says of itself.  room: images that it has use for at once.  said: what it did on opening."""

    where: str
    room: int = 0
    said: tuple[tuple[str, str], ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Answer:
    """rows: of tasks that have ended.  contexts: see `Device`.  progress: windows that the device has finished so far,
    of whatever task, and bytes that were moved for a raster, whose file and outlines are written without any.
    """

    rows: list[tuple[int, InputRow]]
    progress: tuple[int, int]
    contexts: str


def crash_file(order: Order, where: str) -> Path:
    """Where a worker writes what it crashes of.  where: HOST:PID."""
    return order.unfinished / f"crash-{where}"


class FleetWorker:
    """Its own thread has the device; whoever owns the worker calls `open` once, then `exchange`."""

    def __init__(self, order: Order, share: MachineShare) -> None:
        """share: of the machine; of the whole process from now on."""
        os.environ.update(share.environment())
        self._order = order
        self._in: SimpleQueue[Task] = SimpleQueue()
        self._out: SimpleQueue[tuple[int, InputRow] | WorkerReady | None] = SimpleQueue()
        self._ended: BaseException | None = None
        self._windows = 0
        self._contexts = ""
        self._raster: int | None = None  # the thread that is at one
        self._where = f"{socket.gethostname()}:{os.getpid()}"
        # A daemon: nothing joins it when the process ends because its cluster has.
        threading.Thread(target=self._work, name="edgeseg-device", daemon=True).start()

    def open(self) -> WorkerReady:
        """Once the engine is there, or why it is not."""
        try:
            found = self._take(None)
        except DeployError as error:
            return WorkerReady(self._where, error=str(error))
        assert isinstance(found, WorkerReady)
        return found

    def exchange(self, tasks: list[Task]) -> Answer:
        """Take on tasks, and say what has ended, after the first that has or a moment."""
        for task in tasks:
            self._in.put(task)
        rows = []
        try:
            rows.append(self._take(_ANSWER))
            while True:
                rows.append(self._take(0))
        except Empty:
            moved = 0 if self._raster is None else bytes_moved(self._raster)
            return Answer([row for row in rows if isinstance(row, tuple)], (self._windows, moved), self._contexts)

    def _take(self, seconds: float | None) -> tuple[int, InputRow] | WorkerReady:
        found = self._out.get(block=seconds != 0, timeout=seconds or None)
        if found is None:
            raise self._ended or DeployError("a worker's thread ended")
        return found

    def _work(self) -> None:
        try:
            order, said = self._order, list[tuple[str, str]]()
            self._keep_unfinished()
            prove = prover(lambda step, text: said.append((step, text)))
            loading = (order.threads, order.host_code, prove, order.threshold, order.views)
            with open_segmenter(order.bundle, *loading) as (segmenter, manifest):
                device = segmenter.device
                device.on_window = lambda done, total: self._count(device.contexts)
                room = reading_threads() + writing_threads() + 2 * device.in_flight + 1
                self._out.put(WorkerReady(self._where, room, tuple(said)))
                while True:
                    self._alone(segmenter, manifest, self._images(segmenter))
        finally:
            self._ended = sys.exc_info()[1]
            self._out.put(None)

    def _keep_unfinished(self) -> None:
        """Raises DeployError where the folder is not seen, which the driver has made."""
        folder = self._order.unfinished
        _seen(folder.parent)
        _seen(folder)
        keep_unfinished_in(folder)
        self._crashes = crash_file(self._order, self._where).open("w")  # open as long as this process is
        faulthandler.enable(self._crashes, all_threads=False)

    def _count(self, contexts: str) -> None:
        self._windows += 1
        self._contexts = contexts

    def _images(self, segmenter: Segmenter) -> Task:
        """Work on images until there is a raster or a video, which is returned."""
        options = self._order.options
        wanted = segmenter.spec.pixels.but(options.bands, options.scale)
        others: list[Task] = []

        def jobs(behind: Behind[int, None]) -> Iterator[ImageJob]:
            while not others:
                for _ in behind.done():  # raises what is no DeployError
                    pass
                try:
                    task = self._in.get(timeout=_PATIENCE)
                except Empty:
                    continue
                if task.kind == IMAGE:
                    yield ImageJob(task.path, task.target, task.index)
                else:
                    others.append(task)

        with Behind[int, None](quiet=segmenter.device.name == "host") as behind:
            source = Intake(
                jobs(behind), lambda job, admit: read_picture(_seen(job.path), options.max_pixels, wanted, admit),
                lambda found: found.pixels, ready=lambda: not self._in.empty(),
            )  # fmt: skip
            with closing(flow(segmenter, source, ordered=False, confidence=options.confidence)) as outcomes:
                for outcome in outcomes:
                    behind.put(outcome.job.index, lambda outcome=outcome: self._end(outcome, segmenter))  # type: ignore[misc]
                    del outcome
        return others[0]

    def _end(self, outcome: Done[ImageJob, Decoded], segmenter: Segmenter) -> None:
        job = outcome.job
        try:
            row = end(outcome, segmenter.spec, self._order.options)
        except DeployError as error:
            row = InputRow.failed(IMAGE, job.path, job.target, error)
        self._out.put((job.index, row))

    def _alone(self, segmenter: Segmenter, manifest: Manifest, task: Task) -> None:
        options, path, target = self._order.options, task.path, task.target
        try:
            source = _seen(path)
            if task.kind == RASTER:
                self._raster = threading.get_native_id()
                parts = replace(options, shard=task.part)
                ((_, raster),) = run_rasters(segmenter, {str(source): target}, parts, manifest.results_from, None)
                row = InputRow.of_raster(path, target, raster)
            else:
                row = InputRow.of_video(str(source), target, run_video(segmenter, str(source), target, options))
        except DeployError as error:
            row = task.failed(error)
        self._raster = None
        self._out.put((task.index, row))


def _seen(path: Path) -> Path:
    """Raises DeployError where this machine does not have what the one that deals the work out has."""
    if not path.exists():
        raise DeployError(
            f"{path}: not seen by {socket.gethostname()}; a path has to be the same on every machine of the cluster"
        )
    return path
