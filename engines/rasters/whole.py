"""All parts of a raster become one file, which is read back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.errors import DeployError
from engines.files import replacing_path
from engines.images.write import label_counts
from engines.rasters.chunks import RUN, Chunks
from engines.rasters.gdal import disk_full, open_raster
from engines.rasters.gdal_write import read_back, write_cog
from engines.spec import IGNORE_LABEL, ModelSpec


def counted(parts: Iterable[UInt8]) -> NDArray[np.int64]:
    """How often each of the 256 values is there."""
    counts = np.zeros(256, np.int64)
    for each in parts:
        counts += label_counts(each)
    return counts


def made(
    chunks: Chunks, layer: str, target: Path, counts: NDArray[np.int64], spec: ModelSpec | None = None, also: str = ""
) -> Path:  # fmt: skip
    """All parts of a layer as one file, among them: what a killed run leaves of it is in nobody's way.

    counts: how often each value is there.  spec, also: see `Chunks.mosaic`.  Raises DeployError where it is not in the
    file: of a full disk GDAL may say nothing.
    """
    whole, nothing = chunks.folder / f"whole-{layer}.tif", None if spec is None else IGNORE_LABEL
    whole.unlink(missing_ok=True)
    write_cog(chunks.mosaic(layer, nothing, spec, also), whole, labels=spec is not None)
    wrong = counted(read_back(whole)) - counts
    wrong[nothing or 0] = 0
    if wrong.any():
        raise DeployError(
            f"output {target}: {int(abs(wrong).sum())} pixels were not written as they are; try again with --resume"
            f"{disk_full(whole)}"
        )
    return whole


def put(finished: Path, target: Path) -> None:
    """In its place, in one step.  Raises DeployError."""
    with replacing_path(target, ending=target.suffix) as new:
        os.replace(finished, new)


def certainty_of(labels: Path) -> Path:
    """Where the confidence of a raster lies."""
    return labels.with_suffix(".confidence.tif")


def found(key: str, target: Path, confidence: bool, polygons: str | None) -> NDArray[np.int64] | None:
    """How often each label is in the results of that run; None where they are not there, not all, or not whole."""
    rasters = [target, certainty_of(target)] if confidence else [target]
    shapes = [] if polygons is None else [target.with_suffix(f".{polygons}")]
    if not all(path.is_file() for path in (*rasters, *shapes)):
        return None
    try:
        for path in rasters:
            with open_raster(path) as file:
                made_by = file.tag(RUN).split()
            if key not in made_by or (path == target and polygons not in (None, *made_by)):
                return None
        *_, counts = [counted(read_back(path)) for path in reversed(rasters)]
    except DeployError:  # damaged: they are made again
        return None
    return counts
