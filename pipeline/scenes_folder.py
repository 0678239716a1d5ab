"""Rendered scenes as a folder of images, for a model that was trained on them and comes without photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calib.data.scenes import render


def render_folder(folder: Path, seeds: Sequence[int], height: int, width: int) -> Path:
    """Write one PPM a seed into `folder` / images and return that."""
    images = folder / "images"
    images.mkdir(parents=True)
    for seed in seeds:
        pixels = render(seed, height, width).image
        (images / f"scene-{seed}.ppm").write_bytes(b"P6 %d %d 255\n" % (width, height) + pixels.tobytes())
    return images
