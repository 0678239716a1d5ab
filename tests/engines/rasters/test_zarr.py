"""Which array of a Zarr is read: the finest of an image, the only one of a group; by pixels that GDAL reads of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from engines.rasters.gdal import open_raster
from tests.engines.rasters.zarrs import write_array, write_group, write_image

pytest.importorskip("rasterio", reason="rasterio, which reads rasters, is not installed")
HEIGHT, WIDTH = 70, 150


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), np.uint8)


def pixels(path: Path | str, bands: tuple[int, ...] = ()) -> np.ndarray:
    """(bands, H, W)."""
    with open_raster(path) as file:
        return np.moveaxis(file.read((0, file.height, 0, file.width), bands), 2, 0)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["cyx", "tczyx", "czyx", "tcyx"])
def test_the_finest_level_of_an_image_is_read(image: np.ndarray, tmp_path: Path, axes: str, version: int) -> None:
    """Whatever the order of the levels."""
    whole = image.reshape([{"c": 3, "y": HEIGHT, "x": WIDTH}.get(axis, 1) for axis in axes])
    write_image(tmp_path / "a.zarr", [whole, whole[..., ::2, ::2]], axes, version)
    write_image(tmp_path / "b", [whole[..., ::2, ::2], whole], axes, version)
    assert np.array_equal(pixels(tmp_path / "a.zarr"), image)
    assert np.array_equal(pixels(tmp_path / "b"), image)
    write_array(tmp_path / "c" / "deep", whole, version)
    write_group(tmp_path / "c", {}, version)
    assert np.array_equal(pixels(tmp_path / "c"), image), "the only array"


def test_planes_and_times_are_not_mixed(image: np.ndarray, tmp_path: Path) -> None:
    """And the advice gives those of the first."""
    for axes, shape in (("tczyx", (2, 3, 4)), ("zcyx", (4, 3)), ("tzyx", (2, 4))):
        path = tmp_path / f"{axes}.zarr"
        values = np.random.default_rng(0).integers(0, 256, (*shape, HEIGHT, WIDTH), np.uint8)
        write_image(path, [values], axes)
        with pytest.raises(DeployError, match=r"expected one time \(t\) and one plane \(z\); name the array") as caught:
            pixels(path)
        name, bands = str(caught.value).split("'")[1:]
        first = values[tuple(slice(None) if axis == "c" else 0 for axis in axes[:-2])].reshape(-1, HEIGHT, WIDTH)
        chosen = tuple(map(int, bands.removeprefix(" --bands ").split(",")))
        assert np.array_equal(pixels(name, chosen), first)


def test_what_is_no_image_is_one_line(image: np.ndarray, tmp_path: Path) -> None:
    write_image(tmp_path / "axes", [image], "qyx")
    with pytest.raises(DeployError, match=r"axes: got axes q 3, y 70, x 150, expected some of t, c, z and then y, x$"):
        pixels(tmp_path / "axes")
    write_image(tmp_path / "order", [image], "xyc")
    with pytest.raises(DeployError, match=r"order: got axes x 3, y 70, c 150, expected"):
        pixels(tmp_path / "order")
    write_image(tmp_path / "names", [image], "cy")
    with pytest.raises(DeployError, match=r"names: its description as OME-Zarr is damaged: .*3 axes, 2 names"):
        pixels(tmp_path / "names")
    for name, text in (
        ("json", "{"),
        ("list", "[]"),
        ("none", '{"multiscales": [{}]}'),
        ("text", '{"multiscales": 3}'),
    ):
        write_image(tmp_path / name, [image], "cyx")
        (tmp_path / name / ".zattrs").write_text(text)
        with pytest.raises(DeployError, match=f"^raster .*{name}: its description as OME-Zarr is damaged: "):
            pixels(tmp_path / name)
    write_image(tmp_path / "codec", [image], "cyx", 3)
    about = tmp_path / "codec" / "0" / "zarr.json"
    about.write_text(about.read_text()[:-1] + ', "codecs": [{"name": "none_such"}]}')
    with pytest.raises(DeployError, match=r"codec: GDAL says: Unsupported codec: none_such; .*format 2"):
        pixels(tmp_path / "codec")


def test_the_image_of_a_series(image: np.ndarray, tmp_path: Path) -> None:
    """As bioformats2raw writes them."""
    write_group(tmp_path, {"bioformats2raw.layout": 3})
    write_image(tmp_path / "0", [image, image[:, ::2, ::2]], "cyx")
    write_group(tmp_path / "OME", {"series": ["0"]})
    assert np.array_equal(pixels(tmp_path), image)
    write_image(tmp_path / "1", [image], "cyx")
    with pytest.raises(DeployError, match=r"holds 2 images, expected one; give one by its name: .*/0 or .*/1$"):
        pixels(tmp_path)
