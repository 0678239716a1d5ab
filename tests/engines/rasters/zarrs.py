"""Zarrs, written by their specifications: arrays of formats 2 and 3, and images of OME-Zarr 0.4 and 0.5."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

SIDE = 64  # of a chunk


def write_array(folder: Path, values: np.ndarray, version: int = 2) -> None:
    """values: (..., y, x) uint8.  Of format 3 without the codec `bytes`, which GDAL 3.10 does not know."""
    folder.mkdir(parents=True)
    chunk = [1] * (values.ndim - 2) + [SIDE, SIDE]
    about: dict[str, object] = {"zarr_format": version, "shape": values.shape, "fill_value": 0}
    if version == 2:
        packed = {"id": "zlib", "level": 1}
        about |= {"chunks": chunk, "dtype": "|u1", "order": "C", "compressor": packed, "filters": None}
        (folder / ".zarray").write_text(json.dumps(about | {"dimension_separator": "/"}))
    else:
        grid = {"name": "regular", "configuration": {"chunk_shape": chunk}}
        keys = {"name": "default", "configuration": {"separator": "/"}}
        about |= {"node_type": "array", "data_type": "uint8", "chunk_grid": grid, "chunk_key_encoding": keys}
        (folder / "zarr.json").write_text(json.dumps(about | {"attributes": {}}))
    edges = [(0, 0)] * (values.ndim - 2) + [(0, -size % SIDE) for size in values.shape[-2:]]
    padded = np.pad(values, edges)
    for index in product(*(range(size // step) for size, step in zip(padded.shape, chunk, strict=True))):
        part = padded[tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, chunk, strict=True))].tobytes()
        file = folder.joinpath(*(["c"] if version == 3 else []), *map(str, index))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(zlib.compress(part) if version == 2 else part)


def write_group(folder: Path, attributes: dict[str, object], version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps(attributes))
    else:
        about = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (folder / "zarr.json").write_text(json.dumps(about))


def write_image(folder: Path, levels: Sequence[np.ndarray], axes: str, version: int = 2) -> None:
    """OME-Zarr 0.4, or 0.5 in format 3."""
    for name, level in enumerate(levels):
        write_array(folder / str(name), level, version)
    datasets = [{"path": str(name)} for name in range(len(levels))]
    image = {"multiscales": [{"axes": [{"name": name} for name in axes], "datasets": datasets}]}
    write_group(folder, image if version == 2 else {"ome": {"version": "0.5", **image}}, version)
