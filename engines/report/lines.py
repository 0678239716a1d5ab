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
def told(where: str | None) -> Iterator[Tell]:
    """What each row is handed to.  where: a file, `STDOUT`, or None for nowhere.

    A line that cannot be written stops no work: the block ends, and then this raises DeployError.
    """
    if where is None:
        yield lambda row: None
        return
    lines = _Lines(where)
    try:
        yield lines.put
    finally:
        lines.close()
    if lines.error is not None:
        raise DeployError(f"--log {where}: {lines.missing} line(s) could not be written: {lines.error.strerror}; "
                          "all else was done")  # fmt: skip


class _Lines:
    """Every line is there whole, or not at all, however this process ends and whoever else appends.

    missing: lines that could not be written; error: why the first could not.
    """

    def __init__(self, where: str) -> None:
        self._handle = None if where == STDOUT else _opened(where)
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self.missing = 0
        self.error: OSError | None = None

    def put(self, row: InputRow) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        # ASCII: the bytes of a name that are no UTF-8 become lone surrogates, as Python's os.fsdecode has them.
        line = json.dumps({"time": now, "worker": row.worker or self._worker, **row.to_json()}, allow_nan=False) + "\n"
        try:
            if self._handle is None:
                print(line, end="", flush=True)
            else:
                _append(self._handle, line.encode())
        except OSError as error:
            self.missing += 1
            self.error = self.error or error

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        elif isinstance(self.error, BrokenPipeError):  # else what is left in the buffer fails once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
