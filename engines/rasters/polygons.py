"""Labels of a raster as polygons in a file that geographic information systems read."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.errors import DeployError
from engines.files import replacing_path
from engines.rasters.gdal import INSTALL, disk_full, place_at, said
from engines.rasters.gdal_write import Ring, outlines
from engines.spec import IGNORE_LABEL

Format = Literal["gpkg", "geojson"]
FORMATS: dict[str, str] = {"gpkg": "GPKG", "geojson": "GeoJSON"}
_AT_ONCE = 20_000  # polygons held
_POLYGON = 3  # well-known binary's number


def require_pyogrio(kind: Format) -> None:
    """Raises DeployError where it is not installed."""
    try:
        import pyogrio  # noqa: F401
    except ImportError as error:
        raise DeployError(f"--polygons {kind}: expected pyogrio for it; {INSTALL}") from error


def write_polygons(raster: Path, target: Path, kind: Format, classes: Sequence[str]) -> int:
    """Outlines of the areas of equal labels in `raster`, to `target`.  Returns how many.

    Fields: label, class, and area in m² where the map's unit is a length, else in pixels (`pixels`).  GeoJSON is in
    degrees, as RFC 7946 has it, where the raster's map is known.  Raises DeployError.
    """
    require_pyogrio(kind)
    from pyogrio.errors import DataSourceError, FeatureError, FieldError, GeometryError
    from pyogrio.raw import write

    warnings.filterwarnings("ignore", message="'crs' was not provided")  # a picture has outlines, too
    place = place_at(raster)
    unit = "pixels" if place.metres is None else "area_m2"
    scale = 1 / abs(place.determinant) if place.metres is None else place.metres**2
    options = {"RFC7946": "YES"} if kind == "geojson" and place.crs else {}
    found = outlines(raster, IGNORE_LABEL)
    source = ((label, scale * area(rings), wkb(rings)) for label, rings in found)  # rings take several times as much
    total = 0
    with replacing_path(target, ending=target.suffix) as new:
        while True:
            some = list(source if kind == "geojson" else islice(source, _AT_ONCE))
            if not some and total:
                break
            labels = np.array([label for label, _, _ in some], np.int32)
            names = np.array([classes[label] for label in labels], object)
            areas = np.array([size for _, size, _ in some], np.float64)
            geometry = np.array([outline for _, _, outline in some], object)
            try:
                write(
                    str(new), geometry, [labels, names, areas], ["label", "class", unit], layer="labels",
                    driver=FORMATS[kind], geometry_type="Polygon", crs=place.crs or None, append=total > 0,
                    layer_options=options,
                )  # fmt: skip
            except (DataSourceError, FeatureError, FieldError, GeometryError, OSError, ValueError) as error:
                raise DeployError(f"output {target}: {said(error)}{disk_full(target)}") from error
            total += len(some)
            if kind == "geojson" or len(some) < _AT_ONCE:
                break
        if kind == "geojson" and not _end(new).rstrip().endswith(b"]\n}"):
            raise DeployError(f"output {target}: its end could not be written{disk_full(target)}")
    return total


def area(rings: Sequence[Ring]) -> float:
    """Of a polygon with holes, in the square of its coordinates' unit."""
    sizes = [_shoelace(ring) for ring in rings]
    return sizes[0] - sum(sizes[1:])


def wkb(rings: Sequence[Ring]) -> bytes:
    """Well-known binary, little endian (OGC 06-103r4)."""
    parts: Iterator[Any] = (struct.pack("<I", len(ring)) + np.asarray(ring, "<f8").tobytes() for ring in rings)
    return struct.pack("<BII", 1, _POLYGON, len(rings)) + b"".join(parts)


def _shoelace(ring: Ring) -> float:
    points = np.asarray(ring) - ring[0]
    x, y = points[:, 0], points[:, 1]
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2


def _end(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(path.stat().st_size, 16), os.SEEK_END)
        return file.read()
