"""Images of any number of bands, 8 and 16 bit and float, and what they hide: against the values that were written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from engines.errors import DeployError
from engines.images.bands import shown
from engines.images.read import read_image, read_picture
from engines.spec import Pixels

RNG = np.random.default_rng(3)
FOUR = RNG.integers(0, 4000, (20, 30, 4)).astype(np.uint16)


def _tiff(path: Path, values: np.ndarray, **more: object) -> Path:
    tifffile.imwrite(path, values, photometric="minisblack", **more)
    return path


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_bands_are_chosen_and_scaled(tmp_path: Path, planar: str, kind: type) -> None:
    values = FOUR // 16 if kind == np.uint8 else FOUR
    stored = (values if planar == "contig" else values.transpose(2, 0, 1)).astype(kind)
    path = _tiff(tmp_path / "a.tif", stored, planarconfig=planar)
    got = read_image(path, wanted=Pixels(3, (4, 1, 2), (10.0, 300.0)))
    expected = np.rint((values[:, :, [3, 0, 1]].astype(np.float64).clip(10, 300) - 10) * 255 / 290)
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got == expected).mean() > 0.999


@pytest.mark.parametrize("packed", ["lzw", "deflate"])
def test_packed_tiffs_are_read(tmp_path: Path, packed: str) -> None:
    path = _tiff(tmp_path / "a.tif", FOUR, planarconfig="contig", compression=packed)
    got = read_image(path, wanted=Pixels(4))
    assert np.array_equal(got, (FOUR.astype(np.int64) + 128) // 257)


def test_all_bands_are_taken_where_they_are_as_many(tmp_path: Path) -> None:
    path = _tiff(tmp_path / "a.tif", FOUR // 16, planarconfig="contig")
    with pytest.raises(DeployError, match=r"got 4 band\(s\) of uint16, expected 3; choose them with --bands 1,2,3"):
        read_image(path)
    with pytest.raises(DeployError, match=r"got 4 band\(s\) of uint16, expected 13; give others"):
        read_image(path, wanted=Pixels(13))
    with pytest.raises(DeployError, match=r"got 4 band\(s\), expected 5 for --bands"):
        read_image(path, wanted=Pixels(2, (5, 1)))
    Image.fromarray((FOUR // 16).astype(np.uint8), "RGBA").save(tmp_path / "a.png")  # a fourth band, as is usual
    assert np.array_equal(read_image(tmp_path / "a.png", wanted=Pixels(4)), FOUR // 16)


def test_one_band_of_a_colour_image_is_its_luma(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    for name in ("a.png", "a.tif"):
        Image.fromarray(colours).save(tmp_path / name)
        grey = np.asarray(Image.fromarray(colours).convert("L"))
        assert np.array_equal(read_image(tmp_path / name, wanted=Pixels(1))[:, :, 0], grey)
    Image.fromarray(grey).save(tmp_path / "g.png")
    assert np.array_equal(read_image(tmp_path / "g.png", wanted=Pixels(1))[:, :, 0], grey)
    assert np.array_equal(read_image(tmp_path / "a.png", wanted=Pixels(1, (3,)))[:, :, 0], colours[:, :, 2])


def test_floats_need_a_range(tmp_path: Path) -> None:
    values = (FOUR[:, :, :3] / 4000).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    with pytest.raises(DeployError, match=r"floating-point pixels 0.*say with --scale LOW\.\.HIGH"):
        read_image(tmp_path / "a.tif")
    got = read_image(tmp_path / "a.tif", wanted=Pixels(3, (), (0.0, 1.0)))
    assert np.abs(got - values * 255).max() <= 0.51


@pytest.mark.parametrize("bits", [10, 12, 13])
def test_sixteen_bits_that_are_hardly_used_are_told(tmp_path: Path, bits: int) -> None:
    values = RNG.integers(0, 2**bits, (20, 30, 3)).astype(np.uint16)
    values[0, 0] = 2**bits - 1
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    Image.fromarray(values[:, :, 0]).save(tmp_path / "g.png")
    for name in ("a.tif", "g.png"):
        note, times = read_picture(tmp_path / name).note, round(65535 / (2**bits - 1))
        assert f"{name} uses 0..{2**bits - 1} of 16 bits and comes out {times} times too dark" in note
        assert f"--scale 0..{2**bits - 1}" in note
    scaled = read_picture(tmp_path / "a.tif", wanted=Pixels(3, (), (0.0, 2.0**bits - 1)))
    assert scaled.note == ""
    assert scaled.pixels.max() == 255
    values[0, 0] = 65535
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    assert read_picture(tmp_path / "a.tif").note == ""


def test_what_a_file_hides(tmp_path: Path) -> None:
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:5], alpha[5] = 0, 1
    colours = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(np.dstack([colours, alpha]), "RGBA").save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.pixels, colours)
    assert np.array_equal(picture.hidden, alpha == 0)
    Image.fromarray(np.dstack([colours, np.full_like(alpha, 255)]), "RGBA").save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").hidden is None
    values = FOUR.copy()
    values[3, 4:9] = 9999
    values[7, 7, 0] = 9999  # one band only: a value
    nodata = (42113, "s", 0, "9999", True)  # as GDAL writes it
    path = _tiff(tmp_path / "a.tif", values, planarconfig="contig", extratags=[nodata])
    hidden = read_picture(path, wanted=Pixels(4)).hidden
    assert hidden is not None
    assert np.argwhere(hidden).tolist() == [[3, column] for column in range(4, 9)]
    floats = FOUR.astype(np.float32)
    floats[2, 2, 1] = np.nan
    path = _tiff(tmp_path / "f.tif", floats, planarconfig="contig")
    hidden = read_picture(path, wanted=Pixels(4, (), (0, 4000))).hidden
    assert hidden is not None
    assert np.argwhere(hidden).tolist() == [[2, 2]]


def test_without_tifffile_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _tiff(tmp_path / "a.tif", FOUR, planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)  # importing it raises
    with pytest.raises(DeployError, match=r"expected tifffile for it; pip install 'edgeseg\[images\]'"):
        read_image(path)


@pytest.mark.parametrize("length", [0, 3, 8, 60, 400, 1500])
def test_damaged_tiffs_are_one_line(tmp_path: Path, length: int) -> None:
    whole = _tiff(tmp_path / "a.tif", FOUR, planarconfig="contig").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[:length])
    for wanted in (Pixels(), Pixels(4)):
        with pytest.raises(DeployError, match=r"a\.tif") as error:
            read_image(tmp_path / "a.tif", wanted=wanted)
        assert "\n" not in str(error.value)


def test_a_large_tiff_is_refused_by_its_header(tmp_path: Path) -> None:
    path = _tiff(tmp_path / "a.tif", FOUR, planarconfig="contig")
    with pytest.raises(DeployError, match="got 30x20, more than 599 pixels"):
        read_image(path, 599, Pixels(4))


@pytest.mark.parametrize(("bands", "scale"), [((1, 2), None), ((0, 1, 2), None), ((), (3.0, 3.0)), ((), (0, np.inf))])
def test_impossible_pixels_are_refused(bands: tuple[int, ...], scale: tuple[float, float] | None) -> None:
    with pytest.raises(DeployError, match=r"--bands|--scale"):
        Pixels(3, bands, scale)


def test_any_image_can_be_looked_at() -> None:
    for channels in (1, 2, 3, 4, 13):
        image = RNG.integers(0, 256, (4, 5, channels), np.uint8)
        seen = shown(image)
        assert seen.shape == (4, 5, 3)
        assert np.array_equal(seen[:, :, 0], image[:, :, 0])
