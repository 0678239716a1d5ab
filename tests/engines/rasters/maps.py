"""Small GeoTIFFs, for every test that has a raster among its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

COEFFICIENTS = (0.5, 0, 500_000, 0, -0.5, 5_000_000)  # where they lie on the map


def write(path: Path, image: np.ndarray, **options: object) -> Path:
    """image: (H, W, bands).  options: of rasterio, in place of the usual ones."""
    import rasterio

    place = rasterio.Affine(*COEFFICIENTS)
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": place, "tiled": True, "compress": "deflate"}
    height, width, count = image.shape
    with rasterio.open(
        path, "w", height=height, width=width, count=count, dtype=image.dtype, **profile | options
    ) as file:
        file.write(np.moveaxis(image, 2, 0))
    return path


def read(path: Path) -> np.ndarray:
    """Its first band."""
    import rasterio

    with rasterio.open(path) as file:
        return file.read(1)
