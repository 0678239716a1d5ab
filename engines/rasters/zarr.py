"""Which array of a Zarr is the image: of OME-Zarr (https://ngff.openmicroscopy.org/0.5), the finest level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from engines.errors import DeployError

_AXES = "tczyx"  # of versions that did not name them
_SERIES = "bioformats2raw.layout"  # an attribute of a group of images, each in a group of its own


def finest(path: Path) -> Path:
    """The array of the finest level, where `path` is an image of OME-Zarr 0.1 to 0.5; the array of a group that has
    one; else `path` itself.

    Channels (c) are bands; an image has one time (t) and one plane (z).  Raises DeployError.
    """
    try:
        about = _attributes(path)
        if _SERIES in about and not about.get("multiscales"):
            return _of_series(path)
        if not about.get("multiscales"):
            return _only_array(path)
        image = about["multiscales"][0]
        names = [each if isinstance(each, str) else str(each["name"]) for each in image.get("axes", _AXES)]
        levels = {str(each["path"]): _shape(path / each["path"]) for each in image["datasets"]}
        found = max(levels, key=lambda level: prod(levels[level][-2:]))  # the first, of what keeps to the rules
        if len(names) != len(levels[found]):
            raise ValueError(f"{len(levels[found])} axes, {len(names)} names")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DeployError(f"raster {path}: its description as OME-Zarr is damaged: {error!r}") from error
    _require_one_plane(path, found, names, levels[found])
    return path / found


def _attributes(path: Path) -> Mapping[str, Any]:
    """Of a group, in format 3 or 2; those of OME-Zarr 0.5 lie one deeper."""
    if (path / "zarr.json").is_file():
        found = json.loads((path / "zarr.json").read_text()).get("attributes", {})
        return found | found.get("ome", {})  # type: ignore[no-any-return]
    return json.loads((path / ".zattrs").read_text()) if (path / ".zattrs").is_file() else {}


def _only_array(path: Path) -> Path:
    arrays = [] if _is_array(path) else [each for each in path.iterdir() if _is_array(each)]
    return arrays[0] if len(arrays) == 1 else path


def _is_array(path: Path) -> bool:
    about = path / "zarr.json"
    return (path / ".zarray").is_file() or (about.is_file() and json.loads(about.read_text())["node_type"] == "array")


def _shape(path: Path) -> list[int]:
    name = "zarr.json" if (path / "zarr.json").is_file() else ".zarray"
    return list(map(int, json.loads((path / name).read_text())["shape"]))


def _of_series(path: Path) -> Path:
    """Raises DeployError where there is not one image."""
    images = sorted(each for each in path.iterdir() if each.is_dir() and _attributes(each).get("multiscales"))
    if len(images) != 1:
        names = " or ".join(map(str, images[:4])) or "none"
        raise DeployError(f"raster {path}: holds {len(images)} images, expected one; give one by its name: {names}")
    return finest(images[0])


def _require_one_plane(path: Path, level: str, names: Sequence[str], shape: Sequence[int]) -> None:
    """Raises DeployError."""
    others = dict(zip(names[:-2], shape, strict=False))
    got = ", ".join(f"{name} {size}" for name, size in zip(names, shape, strict=True))
    if list(names[-2:]) != ["y", "x"] or others.keys() - set("tcz"):
        raise DeployError(f"raster {path}: got axes {got}, expected some of t, c, z and then y, x")
    if others.get("t", 1) * others.get("z", 1) != 1:
        behind = list(names[:-2])[names.index("c") + 1 :] if "c" in others else []
        step = prod(others[name] for name in behind)
        bands = ",".join(str(1 + step * channel) for channel in range(others.get("c", 1)))
        raise DeployError(
            f"raster {path}: got axes {got}, expected one time (t) and one plane (z); name the array, and the bands of "
            f"one: 'ZARR:\"{path}\":/{level}' --bands {bands}"
        )
