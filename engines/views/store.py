"""The logits of windows that rows still to come are sampled from: in memory, or in a temporary file."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from engines.contract import Float32
from engines.errors import DeployError
from engines.guard.ledger import nameless_file

Key = tuple[int, int, int]  # view, row and column of the window
_PENDING = 2


class Store(Protocol):
    """Logits by window.  They are kept row by row, (h, K, w), so that some rows of all classes lie together."""

    def put(self, key: Key, logits: Float32) -> None:
        """Take the logits (K, h, w) of a window; the array may be changed afterwards."""

    def rows(self, key: Key, first: int, end: int) -> tuple[Float32, int]:
        """At least rows [first, end) of a window's logits, (rows, K, w), and the number of the first that is there."""

    def drop(self, view: int, row: int) -> None:
        """Forget the windows of that row of a view."""


class InMemory:
    def __init__(self) -> None:
        self._held: dict[Key, Float32] = {}

    def put(self, key: Key, logits: Float32) -> None:
        self._held[key] = np.ascontiguousarray(logits.transpose(1, 0, 2))

    def rows(self, key: Key, first: int, end: int) -> tuple[Float32, int]:
        return self._held[key], 0

    def drop(self, view: int, row: int) -> None:
        self._held = {key: logits for key, logits in self._held.items() if key[:2] != (view, row)}


class InFile:
    """In a file; what is read is a copy, and the system may keep the rest in memory that nothing else wants.

    Written while the engine runs on: at most `_PENDING` windows wait for that.
    """

    def __init__(self) -> None:
        with _explained():
            self._file = nameless_file()
        self._writer = ThreadPoolExecutor(1)
        weakref.finalize(self, _close, self._writer, self._file)
        self._pending: deque[Future[None]] = deque()
        self._places: dict[Key, int] = {}
        self._free: list[int] = []
        self._shape = (0, 0, 0)  # of one window: (h, K, w)

    def put(self, key: Key, logits: Float32) -> None:
        turned = np.ascontiguousarray(logits.transpose(1, 0, 2))
        self._shape = turned.shape
        at = self._free.pop() if self._free else len(self._places) * logits.nbytes
        self._places[key] = at
        self._settle(_PENDING - 1)
        self._pending.append(self._writer.submit(_write, self._file, _bytes(turned), at))

    def rows(self, key: Key, first: int, end: int) -> tuple[Float32, int]:
        self._settle(0)
        _, classes, width = self._shape
        held = np.empty((end - first, classes, width), np.float32)
        part, at = _bytes(held), self._places[key] + first * 4 * classes * width
        while part:
            with _explained():
                read = os.preadv(self._file, [part], at)
            if read == 0:
                raise DeployError("views: the temporary file for their logits was cut; run again")
            at, part = at + read, part[read:]
        return held, first

    def drop(self, view: int, row: int) -> None:
        for key in [key for key in self._places if key[:2] == (view, row)]:
            self._free.append(self._places.pop(key))

    def _settle(self, left: int) -> None:
        """Wait until no more than so many windows are to be written.  Raises DeployError where one could not be."""
        while len(self._pending) > left:
            with _explained():
                self._pending.popleft().result()


def _write(file: int, part: memoryview, at: int) -> None:
    while part:
        written = os.pwrite(file, part, at)
        at, part = at + written, part[written:]


def _close(writer: ThreadPoolExecutor, file: int) -> None:
    writer.shutdown()  # nothing may be written to the descriptor once it is another file's
    os.close(file)


def _bytes(array: Float32) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeployError(
            f"views: the temporary file for their logits: {error.strerror}; free some space, or set TMPDIR to a folder "
            "that has more"
        ) from error
