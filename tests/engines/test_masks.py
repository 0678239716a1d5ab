"""What `run` writes, read back with Pillow; and that a failed write leaves what was there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import DeployError
from engines.masks import overlay, write_confidence, write_mask, write_overlay

PALETTE = ((10, 20, 30), (200, 0, 0), (0, 200, 1))
LABELS = np.random.default_rng(0).integers(0, 3, (20, 30), np.uint8)
IMAGE = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)


def test_a_mask_holds_the_labels_and_shows_the_palette(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[0, 0] = 255
    write_mask(tmp_path / "a.png", labels, PALETTE)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        colours = np.asarray(image.convert("RGB"))
    assert tuple(colours[0, 0]) == (255, 255, 255)
    assert np.array_equal(colours[labels < 3], np.array(PALETTE, np.uint8)[labels[labels < 3]])


def test_an_overlay_is_half_image_half_colour(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[3] = 255
    mixed = overlay(IMAGE, labels, PALETTE)
    expected = (IMAGE.astype(float) + np.array([*PALETTE, *([(0, 0, 0)] * 253)])[labels]) / 2
    seen = labels < 3
    assert np.abs(mixed.astype(float) - expected)[seen].max() <= 1
    assert np.array_equal(mixed[3], IMAGE[3])
    write_overlay(tmp_path / "a.jpg", IMAGE, labels, PALETTE)
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (30, 20))


def test_an_overlay_of_another_size_is_refused() -> None:
    with pytest.raises(DeployError, match="expected one size"):
        overlay(IMAGE, LABELS[:10], PALETTE)


def test_confidence_is_rounded_to_8_bit(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 256 * 4, dtype=np.float32).reshape(32, 32)
    write_confidence(tmp_path / "a.png", values)
    with Image.open(tmp_path / "a.png") as image:
        assert np.abs(np.asarray(image) - 255.0 * values).max() <= 0.501


@pytest.mark.parametrize("place", ["save", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    write_mask(tmp_path / "a.png", LABELS, PALETTE)
    before = (tmp_path / "a.png").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Image.Image, "save") if place == "save" else (os, "replace")), full)
    with pytest.raises(DeployError, match="No space left"):
        write_mask(tmp_path / "a.png", 1 - LABELS // 2, PALETTE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be written"):
        write_mask(tmp_path / "none" / "a.png", LABELS, PALETTE)
