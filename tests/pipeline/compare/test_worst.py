"""The images that are shown: the worst ones, and where in them labels differ."""

from __future__ import annotations

import numpy as np

from pipeline.compare.worst import KEPT, MARK, WIDTH, Worst

PALETTE = ((200, 0, 0), (0, 200, 0))


def _offer(worst: Worst, name: str, differing: int, height: int = 40, width: int = 60) -> None:
    reference = np.zeros((height, width), np.uint8)
    candidate = reference.copy()
    candidate.ravel()[:differing] = 1
    share = 1 - differing / reference.size
    worst.offer(name, share, np.full((height, width, 3), 90, np.uint8), reference, candidate)


def test_the_worst_are_kept_in_order_whatever_the_order_they_come_in() -> None:
    counts = np.random.default_rng(0).permutation(40)
    worst = Worst(PALETTE)
    for count in counts:
        _offer(worst, f"{count}.png", int(count))
    assert [picture.name for picture in worst.pictures()] == ["39.png", "38.png", "37.png"]
    assert len(worst.pictures()) == KEPT


def test_images_without_a_difference_are_not_shown() -> None:
    worst = Worst(PALETTE)
    _offer(worst, "same.png", 0)
    assert worst.pictures() == ()


def test_a_single_pixel_that_differs_is_marked_in_its_place_however_small_the_picture() -> None:
    height, width = 1024, 2048
    reference = np.zeros((height, width), np.uint8)
    candidate = reference.copy()
    candidate[700, 1500] = 1
    worst = Worst(PALETTE)
    worst.offer("a.png", 1 - 1 / reference.size, np.full((height, width, 3), 90, np.uint8), reference, candidate)
    (picture,) = worst.pictures()
    assert picture.image.shape == (240, WIDTH, 3)
    rows, columns = np.nonzero((picture.difference == MARK).all(2))
    assert len(rows) == 9
    assert abs(rows.mean() * height / 240 - 700) < height / 240
    assert abs(columns.mean() * width / WIDTH - 1500) < width / WIDTH
    assert (picture.reference[..., 0] > picture.reference[..., 1]).all()
