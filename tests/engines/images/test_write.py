"""What `run` writes, read back with Pillow; and that a failed write leaves what was there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.errors import DeployError
from engines.images.read import read_labels
from engines.images.write import overlay, write_confidence, write_mask, write_overlay

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


@pytest.mark.parametrize("alpha", [0, 0.1, 0.3, 0.5, 0.77, 1])
def test_any_mixture_is_close_and_never_wraps(alpha: float) -> None:
    ramp = np.arange(256, dtype=np.uint8)
    image = np.repeat(np.repeat(ramp[:, None, None], 254, 1), 3, 2)
    labels = np.repeat(ramp[None, :254], 256, 0)
    mixed = overlay(image, labels, [(value + 1, 255 - value, value) for value in range(254)], alpha)
    colours = np.stack([labels + 1.0, 255.0 - labels, labels], 2)
    error = np.abs(mixed - (alpha * colours + (1 - alpha) * image)).max()
    assert error <= (1 if alpha == 0.5 else 2)


def test_white_over_white_stays_white() -> None:
    white = np.full((2, 2, 3), 255, np.uint8)
    assert overlay(white, np.zeros((2, 2), np.uint8), [(255, 255, 255)]).min() == 255


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(DeployError, match="expected 0 to 1"):
        overlay(IMAGE, LABELS, PALETTE, alpha)


def test_confidence_out_of_range_does_not_wrap(tmp_path: Path) -> None:
    write_confidence(tmp_path / "a.png", np.array([[-1, 1.01, 2, np.nan]], np.float32))
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[0, 255, 255, 0]]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    labels = np.random.default_rng(2).integers(0, 256, (64, 48), np.uint8)
    write_mask(tmp_path / "a.png", labels, PALETTE)
    assert np.array_equal(read_labels(tmp_path / "a.png"), labels)


def test_an_overlay_too_long_for_jpeg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"70000x1.*--overlay"):
        write_overlay(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8), np.zeros((1, 70000), np.uint8), PALETTE)
    assert not list(tmp_path.iterdir())


def test_files_are_as_readable_as_any_and_names_as_long(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_mask(tmp_path / f"{'a' * 251}.png", LABELS, PALETTE)
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(image: Image.Image, file: Any, *_: object, **__: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_mask(tmp_path / "a.png", LABELS, PALETTE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["save", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    write_mask(tmp_path / "a.png", LABELS, PALETTE)
    before = (tmp_path / "a.png").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image if place == "save" else os, place, full)
    with pytest.raises(DeployError, match="No space left"):
        write_mask(tmp_path / "a.png", 1 - LABELS // 2, PALETTE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be written"):
        write_mask(tmp_path / "none" / "a.png", LABELS, PALETTE)
