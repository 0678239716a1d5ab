"""What the work would leave behind if it ended now, and what it is at: kept where the parent can read it after a crash.

Every temporary file and folder of this program is made through here.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SIZE = 1 << 16
_SHORT = 24  # bytes of a folder's path that leave room for those that Ray puts below
_LENGTH = 4  # bytes of the length of what follows, little endian


class Ledger:
    """Memory shared with the processes that are forked from this one, and what is written there."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
        self._lock = threading.Lock()
        self._doing: list[str] = []
        self._left: list[str] = []

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        yield from self._noted(self._doing, text)

    @contextmanager
    def temporary(self, path: Path) -> Iterator[None]:
        yield from self._noted(self._left, str(path.absolute()))

    def read(self) -> tuple[str, list[Path]]:
        """What the other process was at, "" if it did not say, and what it has left."""
        length = int.from_bytes(self._memory[:_LENGTH], "little")
        try:
            doing, left = json.loads(self._memory[_LENGTH : _LENGTH + length])
        except ValueError:  # it ended while it wrote, or before
            return "", []
        return doing, [Path(path) for path in left]

    def clear_up(self) -> list[Path]:
        """Remove what the other process has left.  Returns what could not be removed."""
        left = self.read()[1]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink()
        return [path for path in left if path.exists()]

    def _noted(self, where: list[str], text: str) -> Iterator[None]:
        with self._lock:
            where.append(text)
            self._write()
        try:
            yield
        finally:
            with self._lock:
                where.remove(text)
                self._write()

    def _write(self) -> None:
        body = json.dumps([self._doing[-1] if self._doing else "", self._left]).encode()[: _SIZE - _LENGTH]
        self._memory[_LENGTH : _LENGTH + len(body)] = body
        self._memory[:_LENGTH] = len(body).to_bytes(_LENGTH, "little")


ledger = Ledger()


@contextmanager
def temporary_folder(prefix: str = "edgeseg-", sockets: bool = False) -> Iterator[Path]:
    """A folder that only this user may enter, gone after the block, also when the process crashes inside.

    sockets: in /tmp where TMPDIR is long: a socket's path has 107 bytes at most.
    """
    place = "/tmp" if sockets and len(tempfile.gettempdir()) > _SHORT else None  # noqa: S108  it is made in one step
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place) as folder, ledger.temporary(Path(folder)):
        yield Path(folder)


def nameless_file() -> int:
    """The descriptor of a file without a name: gone once it is closed, however the process ends.  Raises OSError."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
