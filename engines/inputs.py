"""The INPUT... of the command line -> image files, and the names of what is written for each."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from engines.errors import DeployError
from engines.images import SUFFIXES


def expand(inputs: Sequence[str]) -> list[Path]:
    """Files as they are, folders as the images directly in them, globs (``**`` too) as what they match.

    In the order given, within a folder or glob in natural order (2 before 10), each file once.
    Raises DeployError when one of them yields nothing.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            matches = [child for child in path.iterdir() if child.suffix.lower() in SUFFIXES and child.is_file()]
            wanted = f"images ({' '.join(sorted(SUFFIXES))}) in it"
        elif path.exists():
            matches, wanted = [path], ""
        elif glob.has_magic(text):
            matches = [Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file()]
            matches = [match for match in matches if match.suffix.lower() in SUFFIXES]
            wanted = "images that match"
        else:
            raise DeployError(f"input {text}: no such file or folder")
        if not matches:
            raise DeployError(f"input {text}: got nothing, expected {wanted}")
        found.update(dict.fromkeys(sorted(matches, key=_natural)))
    return list(found)


def output_names(paths: Sequence[Path], folder: Path) -> dict[Path, str]:
    """The mask of ``NAME.ext`` is ``NAME.png``.

    Raises DeployError when two inputs would write the same file, or a mask would overwrite an input.
    """
    names: dict[Path, str] = {}
    owners: dict[str, Path] = {}
    inputs = {path.absolute() for path in paths}
    for path in paths:
        name = f"{path.stem}.png"
        other = owners.setdefault(name.lower(), path)
        if other != path:
            raise DeployError(f"inputs {other} and {path}: both would be written to {name}; run them into two folders")
        if (folder / name).absolute() in inputs:
            raise DeployError(f"output {folder / name}: would overwrite the input {path}; choose another -o")
        names[path] = name
    return names


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
