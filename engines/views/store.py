"""The logits of windows that rows still to come are sampled from: in memory, or in a temporary file."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
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

    def start(self) -> None:
        """What `rows` gave before is not looked at any more."""

    def rows(self, key: Key, first: int, end: int) -> tuple[Float32, int]:
        """At least rows [first, end) of a window's logits, (rows, K, w), and the number of the first that is there."""

    def drop(self, view: int, row: int) -> None:
        """Forget the windows of that row of a view."""


class InMemory:
    def __init__(self) -> None:
        self._held: dict[Key, Float32] = {}

    def put(self, key: Key, logits: Float32) -> None:
        self._held[key] = np.ascontiguousarray(logits.transpose(1, 0, 2))

    def start(self) -> None:
        pass

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
        self._pending: deque[Future[Float32]] = deque()
        self._spare: list[Float32] = []  # memory of windows that were written
        self._scratch: Float32 = np.empty(0, np.float32)  # and for those rows that are read; new pages cost time
        self._taken = 0
        self._places: dict[Key, int] = {}
        self._free: list[int] = []
        self._shape = (0, 0, 0)  # of one window: (h, K, w)

    def put(self, key: Key, logits: Float32) -> None:
        self._settle(_PENDING - 1)
        turned = self._spare.pop() if self._spare else np.empty(logits.transpose(1, 0, 2).shape, np.float32)
        turned[:] = logits.transpose(1, 0, 2)
        self._shape = turned.shape
        at = self._free.pop() if self._free else len(self._places) * logits.nbytes
        self._places[key] = at
        self._pending.append(self._writer.submit(_written, self._file, turned, at))

    def start(self) -> None:
        if self._taken > self._scratch.size:
            self._scratch = np.empty(self._taken, np.float32)
        self._taken = 0

    def rows(self, key: Key, first: int, end: int) -> tuple[Float32, int]:
        self._settle(0)
        _, classes, width = self._shape
        shape = (end - first, classes, width)
        held = self._scratch[self._taken : self._taken + prod(shape)]
        self._taken += prod(shape)
        held = (held if held.size == prod(shape) else np.empty(prod(shape), np.float32)).reshape(shape)
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

    def clear(self) -> None:
        """Forget all windows, and keep the file: the next image's go where the system has pages already."""
        self._settle(0)
        self._free += self._places.values()
        self._places.clear()

    def _settle(self, left: int) -> None:
        """Wait until no more than so many windows are to be written.  Raises DeployError where one could not be."""
        while len(self._pending) > left:
            with _explained():
                self._spare.append(self._pending.popleft().result())


def _written(file: int, logits: Float32, at: int) -> Float32:
    part = _bytes(logits)
    while part:
        count = os.pwrite(file, part, at)
        at, part = at + count, part[count:]
    return logits


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
