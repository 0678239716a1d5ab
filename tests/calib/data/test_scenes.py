"""Rendered scenes: the same on every run, of any size, and worth learning from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from calib.data.scenes import CLASSES, PALETTE, POLE, render


def test_a_scene_is_a_function_of_its_seed() -> None:
    first, again, other = render(7, 96, 160), render(7, 96, 160), render(8, 96, 160)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.labels, other.labels)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (33, 47), (512, 1024), (1024, 2048)])
def test_any_size(size: tuple[int, int]) -> None:
    scene = render(3, *size)
    assert scene.image.shape == (*size, 3)
    assert scene.labels.shape == size
    assert scene.image.dtype == scene.labels.dtype == np.uint8
    assert scene.labels.max() < len(CLASSES) == len(PALETTE)


def test_every_class_appears_and_none_fills_the_world() -> None:
    shares = np.zeros(len(CLASSES))
    for seed in range(20):
        shares += np.bincount(render(seed, 192, 384).labels.ravel(), minlength=len(CLASSES)) / (192 * 384) / 20
    assert shares.min() > 0.001, dict(zip(CLASSES, shares, strict=True))
    assert shares.max() < 0.5


def test_poles_are_thin() -> None:
    widths = []
    for seed in range(6):
        labels, count = ndimage.label(render(seed, 512, 1024).labels == POLE)
        widths += [part[1].stop - part[1].start for part in ndimage.find_objects(labels)[:count]]
    assert np.median(widths) < 30


def test_colour_alone_does_not_give_the_class() -> None:
    """A nearest-mean classifier on colour, fitted on the very scenes it is tested on, stays far from the labels."""
    scenes = [render(seed, 128, 256) for seed in range(8)]
    pixels = np.concatenate([scene.image.reshape(-1, 3) for scene in scenes]).astype(float)
    labels = np.concatenate([scene.labels.ravel() for scene in scenes])
    means = np.stack([pixels[labels == k].mean(0) for k in range(len(CLASSES))])
    guess = ((pixels[:, None] - means) ** 2).sum(2).argmin(1)
    assert (guess == labels).mean() < 0.6


def test_the_images_that_ship_are_these_scenes() -> None:
    """The demo's photographs can be rendered again: their labels are known (seeds 3 and 12)."""
    from pathlib import Path

    from PIL import Image

    folder = Path(__file__).parents[3] / "pipeline" / "demo" / "images"
    for name, seed in (("street-1", 3), ("street-2", 12)):
        with Image.open(folder / f"{name}.jpg") as image:
            difference = np.asarray(image).astype(int) - render(seed, 1024, 2048).image
        assert np.abs(difference).mean() < 5
