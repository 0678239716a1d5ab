"""Files that appear whole or not at all, folders for them, their digests and their order."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from engines.errors import DeployError
from engines.guard.ledger import ledger

# What numpy and zipfile raise on a damaged .npz, found by mutating one (tests/fuzz).
DAMAGED_NPZ = (
    OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, SyntaxError, MemoryError, OverflowError,
    struct.error, zlib.error, zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_POINTER = b"version https://git-lfs.github.com/spec/"  # how the text that Git LFS leaves for a file begins


def refuse_pointer(path: Path, what: str) -> None:
    """Raises DeployError where `path` holds Git LFS's pointer to a file, not the file; OSError where it is not read."""
    with open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise DeployError(f"{what} {path}: is a Git LFS pointer, not the file; fetch it with: git lfs pull")


@contextmanager
def replacing(path: Path, what: str = "output") -> Iterator[BinaryIO]:
    """A binary file, open for writing, that takes the place of `path` when the block ends without an error.

    Otherwise as `replacing_path`.
    """
    # open() rather than tempfile, whose files are private.
    with replacing_path(path, what) as temporary, open(temporary, "xb") as file:
        yield file


@contextmanager
def replacing_path(path: Path, what: str = "output", ending: str = "") -> Iterator[Path]:
    """A path to write to; what lies there takes the place of `path` when the block ends without an error.

    Whatever happens, `path` is as before or complete, and nothing else is left beside it.  what: names the file in the
    message.  ending: of its name, for a library that looks at it.
    Raises DeployError where it cannot be written; other errors of the block pass through.
    """
    temporary = _beside(path) / f".edgeseg-{secrets.token_hex(8)}{ending}"  # short, whatever the length of the target's
    try:
        with ledger.temporary(temporary):
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        raise DeployError(f"{what} {path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # after the replacement it is gone; otherwise the first error is the one to report
            temporary.unlink()


_unfinished: Path | None = None


def keep_unfinished_in(folder: Path) -> None:
    """From now on what this process writes lies in `folder` until it is whole, where that is on the same file system.

    Who made the folder removes it, and so what is left of a process that was killed; from then on nothing is written.
    """
    global _unfinished
    _unfinished = folder


def _beside(path: Path) -> Path:
    """Raises nothing: what is wrong with the place is said when it is written to."""
    if _unfinished is not None:
        with suppress(OSError):
            if not _unfinished.exists() or os.stat(_unfinished).st_dev == os.stat(path.parent).st_dev:
                return _unfinished
    return path.parent


def replace_folder(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`; what was there is gone when this returns, and not a moment before.

    On Linux the two are exchanged in one step, so that a reader, or a crash, finds the old one or the new one, whole.
    Elsewhere there is a moment without either.  Both lie in one folder.  Raises OSError.
    """
    for path in (*new.rglob("*"), new):
        _to_disk(path)
    if not folder.exists():
        os.replace(new, folder)
    elif not _exchanged(new, folder):
        old = new.with_name(f"{new.name}.old")
        os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            os.replace(old, folder)
            raise
        os.replace(old, new)
    _to_disk(folder.parent)
    shutil.rmtree(new, ignore_errors=True)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a file system that cannot be asked for it, as some shared ones for folders
            raise
    finally:
        os.close(handle)


def _exchanged(one: Path, other: Path) -> bool:
    """Let the two swap their names; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(other))


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Write `body`, whole or not at all.  Raises DeployError, and ValueError for NaN, which JSON does not have."""
    with replacing(path) as file:
        file.write(f"{json.dumps(body, indent=1, allow_nan=False)}\n".encode())


def make_folder(path: Path) -> None:
    """Make the folder for results, before hours of work rather than after.  Raises DeployError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeployError(f"output {path}: cannot be created: {error.strerror}") from error


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hashed_copy(source: Path, target: Path) -> str:
    """Copy a file; returns the sha256 of what was copied.  Raises OSError."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(1 << 20):
            digest.update(chunk)
            written.write(chunk)
    return digest.hexdigest()


def natural(path: Path) -> list[tuple[int, str]]:
    """To sort by, with the numbers in a name as numbers: frame2 before frame10."""
    parts = re.split(r"([0-9]+)", str(path))  # text, number, text, ...
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]
