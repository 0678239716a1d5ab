"""Files that appear whole or not at all, folders for them, their digests and their order."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from engines.errors import DeployError


@contextmanager
def replacing(path: Path, what: str = "output") -> Iterator[BinaryIO]:
    """A binary file, open for writing, that takes the place of `path` when the block ends without an error.

    Whatever happens, `path` is as before or complete, and nothing else is left beside it.  what: names the file in the
    message.  Raises DeployError where it cannot be written; other errors of the block pass through.
    """
    # A short name, whatever the length of the target's; open() rather than tempfile, whose files are private.
    temporary = path.parent / f".edgeseg-{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise DeployError(f"{what} {path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # after the replacement it is gone; otherwise the first error is the one to report
            temporary.unlink()


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


def natural(path: Path) -> list[tuple[int, str]]:
    """To sort by, with the numbers in a name as numbers: frame2 before frame10."""
    parts = re.split(r"([0-9]+)", str(path))  # text, number, text, ...
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]
