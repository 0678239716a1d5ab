"""Image files -> (H, W, 3) uint8 RGB, the way a user expects to see them."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from engines.contract import UInt8
from engines.errors import DeployError
from engines.images.shared_pixels import SHARED_FROM, one_block, shared_pixels

MAX_PIXELS = 300_000_000  # 16384 x 16384 and a little; decoded, that is 1.2 GB
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm"})

# What Pillow may try.  Not all it knows: EPS would start Ghostscript on a user's file, and a cut JPEG 2000 decodes
# without complaint into a different image.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "GIF")

# What damaged files raise.  Flipping and cutting bytes shows the first four (its tests); Pillow's own
# loaders are written to expect the others.
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error,
            EOFError, IndexError, KeyError, TypeError, OverflowError, zlib.error)  # fmt: skip

# 16 bit -> 8 bit: round(v / 257), so that 65535 -> 255.
_TO_8_BIT: UInt8 = ((np.arange(65536) + 128) // 257).astype(np.uint8)

_lock = threading.Lock()


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """(H, W, 3) uint8 RGB.

    EXIF orientation is applied, alpha is dropped (as Pillow's ``convert("RGB")`` does), grey and palette images become
    RGB, of several frames or pages the first is read.  16-bit grey is scaled with rounding (65535 -> 255); 16-bit
    colour is cut to its high byte by Pillow, less than one level away.
    Raises DeployError on anything that is not a complete image of at most `max_pixels` pixels.
    """
    image = _decode(path, max_pixels, upright=True)
    if image.mode == "F":
        raise DeployError(f"image {path}: got floating-point pixels, expected 8 or 16 bit integers; convert it first")
    if image.mode.startswith("I"):  # 16 or 32 bit grey; Pillow's convert would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DeployError(
                f"image {path}: got values {values.min()}..{values.max()}, expected 16 bit; scale it first"
            )
        return np.repeat(_TO_8_BIT[values][:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # convert("RGB") alone would warn about the transparency
    if image.mode != "RGB":
        image = image.convert("RGB")
    elif _is_shared(image):
        return shared_pixels(image)
    return np.asarray(image)


def read_labels(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """A label map (H, W) uint8 from an index or grey PNG; of 1-bit images the labels are 0 and 1.

    Raises DeployError on colours, on labels above 255, and on JPEG, whose losses would change the labels.
    """
    image = _decode(path, max_pixels, upright=False)
    if image.format in ("JPEG", "MPO"):
        raise DeployError(f"labels {path}: got a JPEG, which does not keep labels exactly; expected a PNG")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 255:
            raise DeployError(f"labels {path}: got values {values.min()}..{values.max()}, expected 0..255")
        return values.astype(np.uint8)
    if image.mode not in ("L", "P", "1"):
        raise DeployError(
            f"labels {path}: got a {image.mode} image, expected an index or grey PNG of class numbers; if its colours "
            "stand for classes, say for which with --label-colors"
        )
    return np.array(image, np.uint8)


def read_label_colours(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """A colour-coded label file as (H, W, 3) uint8 RGB; of an index PNG the colours of its palette.

    Raises DeployError on 16 bit, and on JPEG, whose losses would change the colours.
    """
    image = _decode(path, max_pixels, upright=False)
    if image.format in ("JPEG", "MPO"):
        raise DeployError(f"labels {path}: got a JPEG, which does not keep colours exactly; expected a PNG")
    if image.mode not in ("RGB", "RGBA", "P", "L", "LA", "1"):
        raise DeployError(f"labels {path}: got a {image.mode} image, expected colours of 8 bit")
    return np.asarray(image.convert("RGBA").convert("RGB"))


def _decode(path: Path, max_pixels: int, *, upright: bool) -> Image.Image:
    """The first frame, decoded, `upright` if asked; every way in which a file can be bad becomes a DeployError."""
    try:
        with _own_terms(), Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DeployError(
                    f"image {path}: got {width}x{height}, more than {max_pixels} pixels; "
                    "if that is no accident, raise --max-pixels"
                )
            with one_block() if _is_shared(image) else nullcontext():
                image.load()
                if upright:
                    ImageOps.exif_transpose(image, in_place=True)
            return image
    except UnidentifiedImageError as error:
        got = "not an image, or of an unknown format" if path.stat().st_size else "an empty file"
        raise DeployError(f"image {path}: {got}; expected PNG, JPEG, TIFF, WebP or BMP") from error
    except MemoryError as error:
        raise DeployError(f"image {path}: not enough memory to decode it; cut it into parts") from error
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _is_shared(image: Image.Image) -> bool:
    """Large enough that a copy hurts; Pillow's single blocks end at 2 GB, and larger images are copied again."""
    return image.mode == "RGB" and SHARED_FROM <= image.width * image.height < 2**31 // 4


def _unreadable(path: Path, error: Exception) -> DeployError:
    if isinstance(error, FileNotFoundError):
        return DeployError(f"image {path}: no such file")
    if isinstance(error, IsADirectoryError):
        return DeployError(f"image {path}: is a folder, expected a file")
    if isinstance(error, OSError) and error.errno is not None:  # the system's; Pillow's own have no number
        return DeployError(f"image {path}: cannot be read: {error.strerror}")
    return DeployError(f"image {path}: damaged or incomplete ({' '.join(str(error).split())[:120]})")


@contextmanager
def _own_terms() -> Iterator[None]:
    """Set Pillow's process-wide switches for one image, and set them back.

    Its size limit is smaller than ours and is raised before the header can be asked; another library may have allowed
    cut files, which come back half grey; and a warning is no use to a script.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before
