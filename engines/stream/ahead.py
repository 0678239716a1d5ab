"""Files read by threads ahead of who needs them, in order or as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from engines.errors import DeployError
from engines.images.read import Admit
from engines.stream.budget import PixelBudget, Share
from engines.stream.threads import reading_threads, threads

J = TypeVar("J")
T = TypeVar("T")


@dataclass(frozen=True)
class Read(Generic[J, T]):
    """What became of a job: its value, or the error.  share: of the budget.  ms: without waiting for pixels."""

    job: J
    value: T | None
    error: DeployError | None
    share: Share
    ms: float


class Ahead(Generic[J, T]):
    """read: called in threads with a job and `Share.admit`; a DeployError that it raises is part of the result.

    ordered: whether jobs are taken in the order in which they were put; a late one then holds back those after it.
    ready: jobs that may be read and wait, beside those that threads are at; the bound is `full`.
    quiet: whether its threads stand back behind a device that works on the same cores.
    """

    def __init__(
        self, read: Callable[[J, Admit], T], budget: PixelBudget, *, ordered: bool, ready: int = 2, quiet: bool = False
    ) -> None:  # fmt: skip
        self._read, self._budget, self._ordered = read, budget, ordered
        self._threads = threads("read", reading_threads(), quiet=quiet)
        self._order: deque[Future[Read[J, T]]] = deque()
        self._arrived: SimpleQueue[Future[Read[J, T]]] = SimpleQueue()
        self._put = 0
        self._most = reading_threads() + ready
        self.pending = 0  # put and not taken

    @property
    def full(self) -> bool:
        return self.pending >= self._most

    def put(self, job: J) -> None:
        turn = self._put if self._ordered else None
        self._add(self._threads.submit(self._one, job, Share(self._budget, turn)))

    def put_read(self, job: J, value: T | None, error: DeployError | None = None) -> None:
        """A job that needs no reading: its pixels are the caller's, or nothing will be done with it."""
        done: Future[Read[J, T]] = Future()
        share = Share(self._budget, self._put if self._ordered else None)
        share.end_turn()
        done.set_result(Read(job, value, error, share, ms=0.0))
        self._add(done)

    def take(self, *, wait: bool = True) -> Read[J, T] | None:
        """The next one; None where none is there yet and `wait` is False."""
        future = self._next(wait)
        if future is None:
            return None
        self.pending -= 1
        return future.result()

    def close(self) -> None:
        """Wait for what is being read; nothing else is begun."""
        self._budget.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Ahead[J, T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, future: Future[Read[J, T]]) -> None:
        self._put += 1
        self.pending += 1
        if self._ordered:
            self._order.append(future)
        else:
            future.add_done_callback(self._arrived.put)

    def _next(self, wait: bool) -> Future[Read[J, T]] | None:
        if not self._ordered:
            try:
                return self._arrived.get(block=wait)
            except Empty:
                return None
        return self._order.popleft() if self._order and (wait or self._order[0].done()) else None

    def _one(self, job: J, share: Share) -> Read[J, T]:
        begin, waited = time.perf_counter(), 0.0

        def admit(pixels: int) -> None:
            nonlocal waited
            asked = time.perf_counter()
            share.admit(pixels)
            waited += time.perf_counter() - asked

        value: T | None = None
        failed: DeployError | None = None
        try:
            value = self._read(job, admit)
        except DeployError as error:
            failed = error
            share.release()
        finally:
            share.end_turn()
        taken = time.perf_counter() - begin - waited
        return Read(job, value, failed, share, ms=1e3 * taken)


def read_ahead(jobs: Iterable[J], read: Callable[[J, Admit], T]) -> Iterator[T]:
    """What `read` makes of each job, in order, read while the caller works.  Raises DeployError where it does.

    What was yielded counts as held until the next one is asked for.
    """
    source = iter(jobs)
    with Ahead(read, PixelBudget(), ordered=True) as ahead:
        while True:
            for job in source:
                ahead.put(job)
                if ahead.full:
                    break
            if not ahead.pending:
                return
            found = ahead.take()
            assert found is not None
            if found.error is not None:
                raise found.error
            assert found.value is not None
            yield found.value
            found.share.release()
