"""Jobs become frames: threads read ahead, the caller's own thread has the device.

A GPU's context is current in one thread, that which opened it; KeyboardInterrupt is raised in the main one; and
progress is shown there, too.  All three are the caller's, so that is the thread which starts frames and takes masks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engines.contract import UInt8
from engines.errors import DeployError, GpuLostError
from engines.images.read import Admit
from engines.stream.ahead import Ahead, Read
from engines.stream.budget import PixelBudget
from engines.tiling.device import Confidence, Device, Mask, Timings
from engines.views.work import ViewTimes

J = TypeVar("J")
T = TypeVar("T")


class UnderWay(Protocol):
    """An image on its way, as `engines.segmenter.Running`."""

    timings: Timings
    seconds: float

    @property
    def done(self) -> bool: ...

    def mask(self) -> Mask: ...

    @property
    def views(self) -> tuple[ViewTimes, ...]: ...


class Starter(Protocol):
    """What starts it, as `engines.segmenter.Segmenter`."""

    device: Device

    def start(self, image: UInt8, confidence: Confidence = False) -> UnderWay: ...


@dataclass(frozen=True)
class Done(Generic[J, T]):
    """A job with what was read and its mask, or with the error of either.  frame: with its times."""

    read: Read[J, T]
    frame: UnderWay | None
    mask: Mask | None
    error: DeployError | None

    @property
    def job(self) -> J:
        return self.read.job

    def release(self) -> None:
        """Give its pixels back, once neither image nor mask is held."""
        self.read.share.release()


@dataclass(frozen=True)
class Intake(Generic[J, T]):
    """jobs: taken from their iterator in the caller's thread, ahead of the device.

    read: in threads, as of `Ahead`.  image: of what was read, (H, W, C) uint8.
    held: whether a job is its pixels already: `read` is then called at once, and no other job is taken from the
    iterator before the device has this one.
    ready: whether there is a job without waiting for it, as a camera's next frame; where there is none, what is under
    way is finished first.
    """

    jobs: Iterable[J]
    read: Callable[[J, Admit], T]
    image: Callable[[T], UInt8]
    held: Callable[[J], bool] = lambda job: False
    ready: Callable[[], bool] = lambda: True


def flow(
    starter: Starter,
    source: Intake[J, T],
    *,
    ordered: bool,
    confidence: Confidence = False,
    budget: PixelBudget | None = None,
) -> Generator[Done[J, T], None, None]:
    """What becomes of each job; with as many under way on the device as it takes.  `Done.release` each.

    ordered: as the jobs come, or as they are read.  Once the GPU is lost every further job has that error, unread.
    Raises DeployError where the iterator of jobs does, after all jobs before.
    """
    device, running = starter.device, deque[tuple[Read[J, T], UnderWay | DeployError]]()
    room = budget or PixelBudget()
    quiet, ready = device.name == "host", device.in_flight + 1
    with Ahead(source.read, room, ordered=ordered, ready=ready, quiet=quiet) as ahead:
        jobs = _Feed(source, ahead)
        lost: GpuLostError | None = None
        while True:
            jobs.fill(wait=not running and not ahead.pending)
            if not running and not ahead.pending:
                break
            finish = running and (not ahead.pending or len(running) >= device.in_flight or _over(running[0][1]))
            found = None if finish else ahead.take(wait=not running)
            if found is not None:
                running.append((found, lost or found.error or _started(starter, found, source, confidence)))
                continue
            outcome = _finished(*running.popleft())
            if isinstance(outcome.error, GpuLostError) and lost is None:
                lost = jobs.lost = outcome.error
            found = None  # the one that holds an image when the next is awaited is the caller
            yield outcome
            del outcome
        if jobs.error is not None:
            raise jobs.error


class _Feed(Generic[J, T]):
    """The jobs of a source, handed to the threads as far ahead as is of use."""

    def __init__(self, source: Intake[J, T], ahead: Ahead[J, T]) -> None:
        self._source, self._ahead = source, ahead
        self._jobs: Iterator[J] | None = iter(source.jobs)
        self._held = False  # whether the last one was
        self.error: DeployError | None = None
        self.lost: GpuLostError | None = None

    def fill(self, *, wait: bool) -> None:
        """wait: for one, where there is none yet."""
        while self._jobs is not None and not (self._ahead.pending if self._held else self._ahead.full):
            if not wait and not self._source.ready():
                return
            try:
                job = next(self._jobs)
            except StopIteration:
                self._jobs = None
                return
            except DeployError as error:
                self._jobs, self.error = None, error
                return
            self._put(job)
            wait = False

    def _put(self, job: J) -> None:
        self._held = self._source.held(job)
        if self._held:
            self._ahead.put_read(job, *self._picture(job))
        elif self.lost is not None:
            self._ahead.put_read(job, None, self.lost)
        else:
            self._ahead.put(job)

    def _picture(self, job: J) -> tuple[T | None, DeployError | None]:
        try:
            return self._source.read(job, lambda pixels: None), None
        except DeployError as error:
            return None, error


def _started(
    starter: Starter, found: Read[J, T], source: Intake[J, T], confidence: Confidence
) -> UnderWay | DeployError:  # fmt: skip
    assert found.value is not None
    try:
        return starter.start(source.image(found.value), confidence)
    except DeployError as error:
        return error


def _over(frame: UnderWay | DeployError) -> bool:
    return isinstance(frame, DeployError) or frame.done


def _finished(read: Read[J, T], frame: UnderWay | DeployError) -> Done[J, T]:
    if isinstance(frame, DeployError):
        return Done(read, None, None, frame)
    try:
        return Done(read, frame, frame.mask(), None)
    except DeployError as error:
        return Done(read, frame, None, error)
