"""Label maps, overlays and confidences -> files.  Every file appears whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.contract import UInt8
from engines.errors import DeployError
from engines.files import replacing
from engines.spec import IGNORE_LABEL, RGB
from engines.tiling.core import library

IGNORE_COLOUR = (255, 255, 255)

# Label maps are long runs, so zlib's run-length strategy (3) suits them.  A predicted 2048x1024 street scene, one core:
#   level 1  54 kB  5 ms;   level 6  35 kB  11 ms;   run-length  32 kB  5 ms
# and the same order on confidences (1008 kB 52 ms; 874 kB 146 ms; 861 kB 43 ms).
_PNG_OPTIONS = {"compress_level": 1, "compress_type": 3}
_JPEG_LIMIT = 65500  # pixels a side, libjpeg's


def write_mask(path: Path, labels: UInt8, palette: Sequence[RGB]) -> None:
    """Write labels (H, W) uint8 as an index PNG with `palette`; 255 (ignore) is white.  Raises DeployError."""
    image = Image.fromarray(labels)
    image.putpalette(_table(palette).tobytes())  # turns L into P
    _save(image, path, "PNG", **_PNG_OPTIONS)


def write_overlay(path: Path, image: UInt8, labels: UInt8, palette: Sequence[RGB], alpha: float = 0.5) -> None:
    """Write `overlay` as a JPEG of quality 90.  Raises DeployError."""
    height, width = labels.shape
    if max(height, width) > _JPEG_LIMIT:
        raise DeployError(
            f"overlay {path}: got {width}x{height}, a JPEG has at most {_JPEG_LIMIT} a side; run without --overlay"
        )
    _save(Image.fromarray(overlay(image, labels, palette, alpha)), path, "JPEG", quality=90)


def write_confidence(path: Path, confidence: NDArray[Any]) -> None:
    """Write confidences (H, W) in 0..1, or their bytes, as a grey PNG, 255 = certain, NaN = 0.  Raises DeployError."""
    _save(Image.fromarray(confidence_bytes(confidence)), path, "PNG", **_PNG_OPTIONS)


def confidence_bytes(confidence: NDArray[Any]) -> UInt8:
    """Confidences in 0..1 float32 as bytes, 255 = certain, NaN = 0; bytes as they are."""
    if confidence.dtype == np.uint8:
        return confidence
    clipped = np.fmin(np.fmax(confidence, 0), 1)  # unlike clip, these drop NaN
    found: UInt8 = (clipped * 255 + 0.5).astype(np.uint8)
    return found


def overlay(image: UInt8, labels: UInt8, palette: Sequence[RGB], alpha: float = 0.5) -> UInt8:
    """(H, W, 3) uint8: the labels' colours laid over the image; pixels labelled 255 keep the image's.

    image: (H, W, 3) uint8.  labels: (H, W) uint8.  alpha: the colours' share, 0 to 1, kept to 1/256; the mixture is
    within one level of the exact one at 0.5, within two elsewhere.
    Raises DeployError when the sizes differ or alpha is out of range.
    """
    if image.shape != (*labels.shape, 3):
        raise DeployError(f"overlay: got an image {image.shape} and labels {labels.shape}, expected one size")
    if not 0 <= alpha <= 1:
        raise DeployError(f"overlay: got alpha {alpha}, expected 0 to 1")
    weight = round(256 * alpha)
    # Only one of the two parts is rounded up, so that their sum fits a byte: at most (255 * 256 + 128) / 256.
    colours: UInt8 = (_table(palette).astype(np.uint16) * weight + 128 >> 8).astype(np.uint8)
    mixed: UInt8 = np.take(colours, labels, axis=0)
    if weight == 128:
        mixed += np.right_shift(image, 1)  # the default, and twice as fast on the whole
    else:
        mixed += (image.astype(np.uint16) * (256 - weight) >> 8).astype(np.uint8)
    ignored = labels == IGNORE_LABEL
    if ignored.any():
        mixed[ignored] = image[ignored]
    return mixed


def label_counts(labels: UInt8) -> NDArray[np.int64]:
    """(256,) pixels of each label in (H, W) uint8, by the C core."""
    counts, rows = np.zeros(256, np.int64), labels if labels.strides[1] == 1 else np.ascontiguousarray(labels)
    library().labels_count(rows.ctypes.data, *rows.shape, rows.strides[0], counts.ctypes.data)
    return counts


def class_shares(counts: NDArray[np.int64], pixels: int, classes: Sequence[str]) -> dict[str, float]:
    """Share of `pixels` by class name, largest first, absent classes left out.  counts: as of `label_counts`."""
    order = [int(index) for index in counts.argsort()[::-1] if counts[index] and index < len(classes)]
    return {classes[index]: round(float(counts[index]) / pixels, 6) for index in order}


def shrink(image: UInt8, width: int) -> UInt8:
    """(h, w, 3) uint8: `image` (H, W, 3) uint8 resized to `width` columns, averaging; as it is where not wider."""
    if image.shape[1] <= width:
        return image.copy()
    size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def jpeg_bytes(image: UInt8, quality: int = 85) -> bytes:
    """`image` (H, W, 3) uint8 RGB as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _table(palette: Sequence[RGB]) -> UInt8:
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_LABEL] = IGNORE_COLOUR
    return table


def _save(image: Image.Image, path: Path, kind: str, **options: Any) -> None:
    with replacing(path) as file:
        image.save(file, kind, **options)
