"""What is found out about a bundle after it was built is written into its manifest, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from engines.bundle import MANIFEST, Manifest, open_bundle, sealed
from engines.errors import DeployError


def record(folder: Path, old: Manifest, new: Manifest, files: Mapping[str, bytes] | None = None) -> str | None:
    """Put `new` in the place of `old`, after the `files` that it names and `old` did not.  None, or why it is not done.

    Through a handle of the folder: a bundle that was replaced meanwhile is another folder, and is left alone.  One
    process after another: of two that prove an engine at once the second must not put its files under the manifest of
    the first.
    """
    handle = -1
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        with suppress(OSError):  # where the file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed
        if open_bundle(folder).manifest != old or not os.path.samestat(os.fstat(handle), folder.stat()):
            return "the bundle was replaced meanwhile"
        for name, content in {**(files or {}), MANIFEST: sealed(new).encode()}.items():
            _put(handle, name, content)
    except OSError as error:
        return str(error.strerror)
    except DeployError as error:
        return str(error)
    finally:
        if handle >= 0:
            os.close(handle)
    return None


def _put(folder: int, name: str, content: bytes) -> None:
    temporary = f".edgeseg-{secrets.token_hex(8)}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(OSError):  # after the replacement it is gone
            os.unlink(temporary, dir_fd=folder)
