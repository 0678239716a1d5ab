"""JSON lines: one object for every input as it is finished, appended to a file that several processes may share."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from engines.errors import DeployError
from engines.files import make_folder
from engines.report.rows import InputRow

STDOUT = "-"
Tell = Callable[[InputRow], None]


@contextmanager
def told(where: str | None) -> Iterator[Lines]:
    """What each row is handed to.  where: a file, `STDOUT`, or None for nowhere.

    A file that is not there is made with the first line, or at the end; none where the block raises before one.
    """
    lines = Lines(where)
    try:
        yield lines
        lines.open()
    finally:
        lines.close()


class Lines:
    """Every line is there whole, or not at all, however this process ends and whoever else appends.

    A line that cannot be written stops no work; see `failure`.
    """

    def __init__(self, where: str | None) -> None:
        """Raises DeployError where a file cannot be written, or holds something else."""
        self._where, self._handle = where, -1
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._missing, self._why = 0, ""  # lines that could not be written; why the first could not
        self._left = False  # by who reads standard output
        if where not in (None, STDOUT):
            if os.path.exists(where):  # Path's raises where a folder is closed to us
                self.open()
            else:
                _require_room(Path(where))

    @property
    def failure(self) -> str:
        """What could not be written, or ""."""
        if not self._missing:
            return ""
        return f"--log {self._where}: {self._missing} line(s) could not be written: {self._why}; all else was done"

    def open(self) -> None:
        if self._handle < 0 and self._where not in (None, STDOUT):
            self._handle = _opened(self._where)

    def put(self, row: InputRow) -> None:
        if self._where is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        # ASCII: the bytes of a name that are no UTF-8 become lone surrogates, as Python's os.fsdecode has them.
        line = json.dumps({"time": now, "worker": row.worker or self._worker, **row.to_json()}, allow_nan=False) + "\n"
        try:
            self.open()
            if self._handle < 0:
                print(line, end="", flush=True)
            else:
                _append(self._handle, line.encode())
        except (OSError, DeployError) as error:
            self._missing += 1
            self._why = self._why or getattr(error, "strerror", "") or str(error)
            self._left = self._left or isinstance(error, BrokenPipeError)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
        elif self._left:  # else what is left in the buffer fails once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _require_room(path: Path) -> None:
    """Before hours of work rather than after.  Raises DeployError where the file could not be made."""
    folder = next(each for each in path.absolute().parents if os.path.exists(each))
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        raise DeployError(f"--log {path}: cannot be written: {folder} is no folder that can be written to")


def _opened(where: str) -> int:
    """Raises DeployError, also for a file that holds something else."""
    path = Path(where)
    make_folder(path.parent)
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise DeployError(f"--log {where}: cannot be written: {error.strerror}") from error
    if _is_file(handle) and os.pread(handle, 1, 0) not in (b"", b"{"):
        os.close(handle)
        raise DeployError(f"--log {where}: is there, and does not hold JSON lines; name another file")
    return handle


def _is_file(handle: int) -> bool:
    return stat.S_ISREG(os.fstat(handle).st_mode)


def _append(handle: int, line: bytes) -> None:
    """One after another of the processes that append, so that a line that a full disk or a kill cut off is mended."""
    if not _is_file(handle):  # a pipe or a terminal
        _write(handle, line)
        return
    with suppress(OSError):  # where the file system has no locks a line is one write all the same
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        end = os.fstat(handle).st_size
        whole = not end or os.pread(handle, 1, end - 1) == b"\n"
        try:
            _write(handle, line if whole else b"\n" + line)
        except OSError:
            os.ftruncate(handle, end)
            raise
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)


def _write(handle: int, line: bytes) -> None:
    while line:
        line = line[os.write(handle, line) :]
