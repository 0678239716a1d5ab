"""Pixels shared with Pillow are the pixels that a copy would have, and outlive the image object."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engines.images.read
from engines.images.read import read_image
from engines.tiling.core import gather

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def share_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.images.read, "SHARED_FROM", 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
def test_the_pixels_are_those_of_a_copy(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (37, 53, 3), np.uint8)).save(path)
    pixels = read_image(path)
    assert pixels.strides == (4 * 53, 4, 1)
    assert not pixels.flags.writeable
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))


def test_a_rotated_image_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RNG.integers(0, 256, (20, 31, 3), np.uint8)).save(tmp_path / "a.png", exif=exif)
    expected = np.rot90(np.asarray(Image.open(tmp_path / "a.png")), -1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_the_pixels_outlive_what_they_came_from(tmp_path: Path) -> None:
    original = RNG.integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(original).save(tmp_path / "a.png")
    part = read_image(tmp_path / "a.png")[100:]
    gc.collect()
    others = [np.full((300, 400, 4), 7, np.uint8) for _ in range(8)]
    np.testing.assert_array_equal(part, original[100:])
    assert len(others) == 8


def test_the_tiling_core_reads_them(tmp_path: Path) -> None:
    original = RNG.integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(original).save(tmp_path / "a.png")
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    shared, copied = (gather(image, 3, 5, (32, 32), mean, std) for image in (read_image(tmp_path / "a.png"), original))
    np.testing.assert_array_equal(shared, copied)
