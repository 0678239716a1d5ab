"""Image files -> (H, W, 3) uint8 RGB, the way a user expects to see them."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from engines.errors import DeployError

UInt8 = NDArray[np.uint8]

MAX_PIXELS = 300_000_000  # 16384 x 16384 and a little; decoded, that is 0.9 GB
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm"})

# What Pillow's decoders raise on damaged files, found by flipping and cutting bytes (tests/engines/test_images.py).
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
            struct.error, zlib.error, UnidentifiedImageError, Image.DecompressionBombError)  # fmt: skip

_lock = threading.Lock()


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """(H, W, 3) uint8 RGB.

    EXIF orientation is applied, alpha is dropped (as Pillow's ``convert("RGB")`` does), grey and palette images become
    RGB, 16-bit integers are scaled to 8 bit (65535 -> 255), of several frames or pages the first is read.
    Raises DeployError on anything that is not a complete image of at most `max_pixels` pixels.
    """
    with _opened(path, max_pixels) as image:
        pixels = _to_rgb(image, path)
    if 0 in pixels.shape:
        raise DeployError(f"image {path}: got {pixels.shape[1]}x{pixels.shape[0]} pixels, expected at least one")
    return pixels


def read_labels(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """A label map (H, W) uint8 from an index or grey PNG.  Raises DeployError on colours and on labels above 255."""
    with _opened(path, max_pixels) as image:
        if image.mode in ("I;16", "I;16B", "I"):
            values = np.asarray(image)
            if values.min() < 0 or values.max() > 255:
                raise DeployError(f"labels {path}: got values {values.min()}..{values.max()}, expected 0..255")
            return values.astype(np.uint8)
        if image.mode not in ("L", "P", "1"):
            raise DeployError(
                f"labels {path}: got a {image.mode} image, expected an index or grey PNG of class numbers"
            )
        return np.array(image, np.uint8)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """The first frame, fully decoded; every way in which a file can be bad becomes a DeployError."""
    try:
        with _own_terms(), Image.open(path) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DeployError(
                    f"image {path}: got {width}x{height}, more than {max_pixels} pixels; "
                    "if that is no accident, raise --max-pixels"
                )
            image.load()
            yield image
    except FileNotFoundError as error:
        raise DeployError(f"image {path}: no such file") from error
    except IsADirectoryError as error:
        raise DeployError(f"image {path}: is a folder, expected a file") from error
    except UnidentifiedImageError as error:
        raise DeployError(f"image {path}: not an image, or of an unknown format") from error
    except _DAMAGED as error:
        raise DeployError(f"image {path}: damaged or incomplete ({' '.join(str(error).split())[:120]})") from error


@contextmanager
def _own_terms() -> Iterator[None]:
    """Pillow's size limit is a process-wide global and smaller than ours; and a warning is no use to a script."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _to_rgb(image: Image.Image, path: Path) -> UInt8:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 or 32 bit grey; Pillow's convert would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DeployError(
                f"image {path}: got values {values.min()}..{values.max()}, expected 16 bit; scale it first"
            )
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise DeployError(f"image {path}: got floating-point pixels, expected 8 or 16 bit integers; convert it first")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # convert("RGB") alone would warn about the transparency
    return np.asarray(image.convert("RGB"))
