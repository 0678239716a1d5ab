"""Label maps, overlays and confidences -> files.  Every file appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.errors import DeployError
from engines.spec import IGNORE_LABEL, RGB

UInt8 = NDArray[np.uint8]

IGNORE_COLOUR = (255, 255, 255)

# zlib level of the index PNGs.  Label maps are long runs: level 1 is within 1.5x of level 6 in size, several times
# faster (benchmarks/mask_files.py).
_PNG_LEVEL = 1


def write_mask(path: Path, labels: UInt8, palette: Sequence[RGB]) -> None:
    """Write labels (H, W) uint8 as an index PNG with `palette`; 255 (ignore) is white.  Raises DeployError."""
    image = Image.fromarray(labels)
    image.putpalette(_table(palette).tobytes())  # turns L into P
    _save(image, path, "PNG", compress_level=_PNG_LEVEL)


def write_overlay(path: Path, image: UInt8, labels: UInt8, palette: Sequence[RGB]) -> None:
    """Write `overlay` as a JPEG of quality 90.  Raises DeployError."""
    _save(Image.fromarray(overlay(image, labels, palette)), path, "JPEG", quality=90)


def write_confidence(path: Path, confidence: NDArray[np.float32]) -> None:
    """Write confidences (H, W) in 0..1 as an 8-bit grey PNG, 255 = certain.  Raises DeployError."""
    values = (confidence * 255 + 0.5).astype(np.uint8)
    _save(Image.fromarray(values), path, "PNG", compress_level=_PNG_LEVEL)


def overlay(image: UInt8, labels: UInt8, palette: Sequence[RGB]) -> UInt8:
    """(H, W, 3) uint8: the image and its labels' colours, half and half; pixels labelled 255 keep the image's."""
    if image.shape[:2] != labels.shape:
        raise DeployError(f"overlay: got an image {image.shape[:2]} and labels {labels.shape}, expected one size")
    half: UInt8 = np.right_shift(_table(palette), 1)
    mixed: UInt8 = half[labels]
    mixed += np.right_shift(image, 1)
    ignored = labels == IGNORE_LABEL
    if ignored.any():
        mixed[ignored] = image[ignored]
    return mixed


def _table(palette: Sequence[RGB]) -> UInt8:
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_LABEL] = IGNORE_COLOUR
    return table


def _save(image: Image.Image, path: Path, kind: str, **options: Any) -> None:
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            image.save(file, kind, **options)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise DeployError(f"output {path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _umask() -> int:
    """The process's umask: mkstemp makes private files, masks should be as readable as any other output."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
