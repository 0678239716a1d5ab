"""GDAL through rasterio: what is made of a raster, written and read again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.contract import UInt8
from engines.machine.limits import cores
from engines.rasters.gdal import TILE, environment, explained, open_raster, require_rasterio
from engines.rasters.place import Georeference

AT_ONCE = 16 * 2**20  # pixels that overviews are made of at once; GDAL takes several such parts, and masks of them

Ring = list[tuple[float, float]]


def write_chunk(path: Path, values: UInt8, place: Georeference) -> None:
    """`values` (h, w) as a compressed TIFF.  Raises DeployError, and OSError."""
    require_rasterio(path)
    from rasterio.io import MemoryFile

    with environment(), explained(path, "output"), MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=values.shape[1], height=values.shape[0], count=1, dtype="uint8",
            tiled=True, blockxsize=TILE, blockysize=TILE, compress="deflate", zlevel=1, crs=place.crs or None,
            transform=_affine(place),
        ) as file:  # fmt: skip
            file.write(values, 1)
        whole = memory.read()
    path.write_bytes(whole)  # not by GDAL, which does not say all that it could not write


def write_cog(source: Path, target: Path, labels: bool) -> None:
    """`source`, one band of labels or of a quantity, as a cloud-optimised GeoTIFF with overviews.  Raises DeployError.

    Overviews of labels hold the most frequent one.
    """
    with open_raster(source) as file:
        rows = max(16, min(TILE, AT_ONCE // file.width))
    from rasterio.shutil import copy

    # Left alone, GDAL makes those of a band with colours from as many whole rows as its blocks are high.
    # What it makes of them on the way lies beside the source, and not where a killed run would leave it for good.
    beside = os.environ.get("CPL_TMPDIR", str(source.parent))
    with environment(GDAL_OVR_CHUNKYSIZE=rows, CPL_TMPDIR=beside), explained(target, "output"):
        copy(
            source, target, driver="COG", compress="DEFLATE", blocksize=TILE, bigtiff="IF_SAFER", sparse_ok=True,
            overview_resampling="MODE" if labels else "AVERAGE", num_threads=cores(),
        )  # fmt: skip


def read_back(path: Path) -> Iterator[UInt8]:
    """The tiles of `write_cog` that hold something.  Raises DeployError where one of them, or of the overviews, is not
    whole.
    """
    with open_raster(path) as file:
        levels = len(file.overviews)
        yield from file.tiles()
    for level in range(levels):
        with open_raster(path, level) as file:
            for _ in file.tiles():
                pass


def read_chunk(path: Path) -> UInt8:
    """(h, w), what `write_chunk` wrote.  Raises DeployError."""
    with open_raster(path) as file:
        values: UInt8 = file.read((0, file.height, 0, file.width), ())[:, :, 0]
        return values


def outlines(path: Path, nodata: int) -> Iterator[tuple[int, list[Ring]]]:
    """(label, rings in map coordinates, the outer one first) of every connected area of equal labels, 4-connected.

    GDAL goes through the raster row by row, and joins what belongs together.  Raises DeployError.
    """
    rasterio = require_rasterio(path)
    from rasterio.features import shapes

    with environment(), explained(path, "output"), rasterio.open(path) as dataset:
        for shape, label in shapes(rasterio.band(dataset, 1), transform=dataset.transform):
            if int(label) != nodata:
                yield int(label), shape["coordinates"]


def _affine(place: Georeference) -> Any:
    from rasterio import Affine

    return Affine(*place.transform) if place.known else None
