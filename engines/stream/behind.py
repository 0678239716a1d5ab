"""What is done with results by threads behind the device: writing, scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from engines.errors import DeployError
from engines.stream.threads import threads, writing_threads

K = TypeVar("K")
T = TypeVar("T")


class Behind(Generic[K, T]):
    """Calls made by threads.  count: of threads, 0 as many as writing is worth.  quiet: see `Ahead`.

    Left without an error it waits for all; left with one, for those that have begun.
    """

    def __init__(self, *, count: int = 0, quiet: bool = False) -> None:
        self._threads = threads("write", count or writing_threads(), quiet=quiet)
        self._done: SimpleQueue[tuple[K, Future[T]]] = SimpleQueue()
        self._open = 0

    def put(self, key: K, call: Callable[[], T]) -> None:
        self._open += 1
        self._threads.submit(call).add_done_callback(lambda future: self._done.put((key, future)))

    def done(self, *, wait: bool = False) -> Iterator[tuple[K, T | DeployError]]:
        """Those that ended, each once, with its key.  wait: until all have."""
        while self._open:
            try:
                key, future = self._done.get(block=wait)
            except Empty:
                return
            self._open -= 1
            try:
                yield key, future.result()
            except DeployError as error:
                yield key, error

    def __enter__(self) -> Behind[K, T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=kind is not None)
