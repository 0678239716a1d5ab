"""Where the pixels of a raster lie on a map: by a transform, by ground control points, or by a camera's polynomials."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engines.errors import DeployError

Box = tuple[int, int, int, int]  # rows [0, 1) and columns [2, 3) in pixels


@dataclass(frozen=True)
class Georeference:
    """Where pixels lie on a map.

    crs: well-known text, or "".  transform: GDAL's six numbers (a, b, c, d, e, f): x = a column + b row + c and
    y = d column + e row + f.  metres: how many the map's unit is long, None where it is not a length.
    points: ground control points (row, column, x, y, z), of a raster that has no transform.  points_crs: of x and y.
    rpcs: rational polynomial coefficients, GDAL's names and values.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]
    metres: float | None
    points: tuple[tuple[float, float, float, float, float], ...] = ()
    points_crs: str = ""
    rpcs: tuple[tuple[str, str], ...] = ()

    @property
    def known(self) -> bool:
        """Whether each pixel has coordinates by the transform."""
        return bool(self.crs) or self.transform != (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    @property
    def located(self) -> str:
        """By what each pixel lies on a map; "" where none does."""
        if self.known:
            return "coordinates"
        return "ground control points" if self.points else "RPCs" if self.rpcs else ""

    @property
    def determinant(self) -> float:
        """The area of a pixel on the map, negative where rows go down."""
        a, b, _, d, e, _ = self.transform
        return a * e - b * d

    def moved(self, row: int, column: int) -> Georeference:
        """Of a part of the raster whose first pixel is that one."""
        a, b, c, d, e, f = self.transform
        before = {"LINE_OFF": row, "SAMP_OFF": column}
        by_others = bool(self.points or self.rpcs) and not self.known  # a transform would be believed before them
        shifted = (a, b, a * column + b * row + c, d, e, d * column + e * row + f)
        return replace(
            self,
            transform=self.transform if by_others else shifted,
            points=tuple((r - row, s - column, x, y, z) for r, s, x, y, z in self.points),
            rpcs=tuple((key, _less(value, before.get(key, 0))) for key, value in self.rpcs),
        )

    def pixels(self, west: float, south: float, east: float, north: float) -> Box:
        """The smallest box of whole pixels around one in map coordinates; it may lie outside of the raster.

        Raises DeployError where the raster has no coordinates.
        """
        a, b, c, d, e, f = self.transform
        scale = self.determinant
        if not self.known or scale == 0:
            less = (
                f"lies on a map by {self.located} alone"
                if self.located and not self.known
                else "has no map coordinates"
            )
            raise DeployError(f"--bbox: the raster {less}; use --window")
        corners = [(x, y) for x in (west, east) for y in (south, north)]
        columns = [(e * (x - c) - b * (y - f)) / scale for x, y in corners]
        rows = [(a * (y - f) - d * (x - c)) / scale for x, y in corners]
        near = 1e-6  # of a pixel: the corner of a pixel in map coordinates is rounded
        return (
            int(np.floor(min(rows) + near)), int(np.ceil(max(rows) - near)),
            int(np.floor(min(columns) + near)), int(np.ceil(max(columns) - near)),
        )  # fmt: skip


def place_of(dataset: Any) -> Georeference:
    """dataset: an open one of rasterio's."""
    metres = None
    if dataset.crs and dataset.crs.is_projected:
        metres = float(dataset.crs.linear_units_factor[1])
    transform = dataset.transform
    numbers = (transform.a, transform.b, transform.c, transform.d, transform.e, transform.f)
    place = Georeference(_text(dataset.crs), numbers, metres, rpcs=tuple(sorted(dataset.tags(ns="RPC").items())))
    if place.known:  # a GeoTIFF has a transform or control points
        return place
    points, crs = dataset.gcps
    return replace(place, points=tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points), points_crs=_text(crs))


def _text(crs: Any) -> str:
    return crs.to_wkt() if crs else ""


def _less(value: str, pixels: int) -> str:
    """As it was written, where nothing is taken away."""
    return repr(float(value) - pixels) if pixels else value
