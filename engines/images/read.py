"""Image files -> (H, W, C) uint8, the way a user expects to see them."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from engines.contract import UInt8
from engines.errors import DeployError
from engines.files import refuse_pointer
from engines.images.bands import Decoded, picture_of, too_dark
from engines.images.pillow import one_block, own_terms
from engines.images.shared_pixels import SHARED_FROM, shared_pixels
from engines.images.tiff import SUFFIXES as TIFFS
from engines.images.tiff import is_tiff, read_tiff
from engines.spec import COLOUR, Pixels

MAX_PIXELS = 300_000_000  # 16384 x 16384 and a little; decoded, that is 1.2 GB
JPEG_2000 = frozenset({".jp2", ".j2k", ".jpx", ".j2c"})
HEIF = frozenset({".heic", ".heif"})
SUFFIXES = (
    frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".avif"}) | TIFFS | JPEG_2000 | HEIF
)

# What Pillow may try.  Not all it knows: EPS would start Ghostscript on a user's file.
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "AVIF", "JPEG2000", "HEIF")

# What damaged files raise.  Flipping and cutting bytes shows the first four (its tests); Pillow's own
# loaders are written to expect the others.
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error,
            EOFError, IndexError, KeyError, TypeError, OverflowError, zlib.error)  # fmt: skip

_MOVING = ("GIF", "WEBP", "PNG", "AVIF")  # not MPO and TIFF, whose further pictures are others, or the same smaller
_ORIENTATION = 0x0112  # of EXIF

Admit = Callable[[int], None]


def _formats() -> tuple[str, ...]:
    """Those that Pillow has here: of one that it lacks it would raise KeyError, whatever the file is."""
    return _FORMATS if "HEIF" in Image.OPEN else _FORMATS[:-1]


class _UnknownError(DeployError):
    """Of no format that Pillow knows."""


def read_image(path: Path, max_pixels: int = MAX_PIXELS, wanted: Pixels = COLOUR) -> UInt8:
    """The pixels of `read_picture`."""
    return read_picture(path, max_pixels, wanted).pixels


def read_picture(
    path: Path, max_pixels: int = MAX_PIXELS, wanted: Pixels = COLOUR, admit: Admit = lambda pixels: None
) -> Decoded:
    """(H, W, C) uint8: RGB, or the bands that are wanted.  admit: told how many pixels will be decoded, and may wait.

    EXIF orientation is applied, if wanted.

    Alpha is dropped (as Pillow's ``convert("RGB")`` does), and where it is 0 the picture
    is hidden.  Grey and palette images become RGB; of several frames or pages the first is read.  16 bit is scaled with
    rounding (65535 -> 255), or as `wanted` says; of a PNG's 16-bit colour Pillow keeps the high byte, less than one
    level away.  Raises DeployError on anything that is not a complete image of at most `max_pixels` pixels.
    """
    plain = replace(wanted, upright=True) == COLOUR
    if not plain and is_tiff(path):
        return picture_of(*_swapped(read_tiff(path, max_pixels, admit), wanted, path))
    try:
        image, wide, moves = _decode(path, max_pixels, upright=wanted.upright, admit=admit)
    except _UnknownError:
        if is_tiff(path):
            return picture_of(*_swapped(read_tiff(path, max_pixels, admit), wanted, path))
        raise
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's convert would clip at 255
        return picture_of(np.asarray(image)[:, :, None], wanted, path)
    if image.mode == "P":  # convert("RGB") alone would warn about a transparency
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    hidden = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") and (image.mode, wanted.count) != ("RGBA", 4):
        hidden = np.asarray(image.getchannel("A")) == 0
        image = image.convert("L" if image.mode in ("LA", "La") else "RGB")
    if image.mode not in ("RGB", "L", "RGBA"):
        image = image.convert("RGB")
    if not plain:
        if wide:
            raise DeployError(f"image {path}: got 16-bit colour, which Pillow cuts to 8 bit; write it as a TIFF")
        values = np.asarray(image)
        found = picture_of(values[:, :, None] if values.ndim == 2 else values, wanted, path)
        return replace(found, hidden=hidden if hidden is not None and hidden.any() else None)
    if image.mode != "RGB":
        image = image.convert("RGB")
    pixels = shared_pixels(image) if _is_shared(image) else np.asarray(image)
    note = f"{path} moves, and its first picture was labelled; all: ffmpeg -i FILE -f nut - | run BUNDLE /dev/stdin"
    if not moves:
        note = too_dark(256 * int(pixels.max()) + 255, path) if wide and pixels.any() else ""
    return Decoded(pixels, hidden if hidden is not None and hidden.any() else None, note)


def _swapped(read: tuple[NDArray[Any], float | None], wanted: Pixels, path: Path) -> tuple[Any, ...]:
    return read[0], wanted, path, read[1]


def orientation(path: Path) -> int:
    """The EXIF orientation that the file says, 1 to 8; 1 where it says none, or is no image."""
    try:
        with own_terms(), Image.open(path, formats=_formats()) as image:
            found = image.getexif().get(_ORIENTATION, 1)
    except (UnidentifiedImageError, *_DAMAGED):
        return 1
    return found if found in range(1, 9) else 1


def is_label_map(path: Path) -> bool:
    """Whether the file is a PNG of one channel, as labels are kept and photographs hardly ever."""
    try:
        with own_terms(), Image.open(path, formats=("PNG",)) as image:
            return image.mode in ("P", "L", "1", "I", "I;16")
    except (UnidentifiedImageError, *_DAMAGED):
        return False


def read_labels(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """A label map (H, W) uint8 from an index or grey PNG; of 1-bit images the labels are 0 and 1.

    Raises DeployError on colours, on labels above 255, and on JPEG, whose losses would change the labels.
    """
    image, *_ = _decode(path, max_pixels, upright=False)
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
    image, *_ = _decode(path, max_pixels, upright=False)
    if image.format in ("JPEG", "MPO"):
        raise DeployError(f"labels {path}: got a JPEG, which does not keep colours exactly; expected a PNG")
    if image.mode not in ("RGB", "RGBA", "P", "L", "LA", "1"):
        raise DeployError(f"labels {path}: got a {image.mode} image, expected colours of 8 bit")
    return np.asarray(image.convert("RGBA").convert("RGB"))


def _decode(
    path: Path, max_pixels: int, *, upright: bool, admit: Admit = lambda pixels: None
) -> tuple[Image.Image, bool, bool]:
    """The first frame, decoded, `upright` if asked; whether it is a colour image of 16 bit; whether it moves.

    Every way in which a file can be bad becomes a DeployError.
    """
    try:
        with own_terms(), Image.open(path, formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DeployError(
                    f"image {path}: got {width}x{height}, more than {max_pixels} pixels; "
                    "if that is no accident, raise --max-pixels"
                )
            admit(width * height)
            if image.format == "JPEG2000":
                _refuse_cut(path)
            wide = image.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in image.tile)
            moves = image.format in _MOVING and bool(getattr(image, "is_animated", False))
            with one_block() if _is_shared(image) else nullcontext():
                image.load()
                if upright:
                    ImageOps.exif_transpose(image, in_place=True)
            return image, wide, moves
    except UnidentifiedImageError as error:
        raise _unknown(path) from error
    except MemoryError as error:
        raise DeployError(f"image {path}: not enough memory to decode it; cut it into parts") from error
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _is_shared(image: Image.Image) -> bool:
    """Large enough that a copy hurts; Pillow's single blocks end at 2 GB, and larger images are copied again."""
    return image.mode == "RGB" and SHARED_FROM <= image.width * image.height < 2**31 // 4


def _refuse_cut(path: Path) -> None:
    """Raises DeployError on a JPEG 2000 without its end, which decodes into something else, without complaint."""
    with open(path, "rb") as file:
        file.seek(-min(path.stat().st_size, 2), os.SEEK_END)
        if file.read() != b"\xff\xd9":
            raise DeployError(f"image {path}: damaged or incomplete (a JPEG 2000 without its end)")


def _unknown(path: Path) -> DeployError:
    refuse_pointer(path, "image")
    if path.suffix.lower() in HEIF:
        return DeployError(f"image {path}: not an image, or HEIC without pillow-heif; pip install 'edgeseg[images]'")
    got = "not an image, or of an unknown format" if path.stat().st_size else "an empty file"
    return _UnknownError(f"image {path}: {got}; expected PNG, JPEG, TIFF, WebP, AVIF, JPEG 2000, GIF or BMP")


def _unreadable(path: Path, error: Exception) -> DeployError:
    if isinstance(error, FileNotFoundError):
        return DeployError(f"image {path}: no such file")
    if isinstance(error, IsADirectoryError):
        return DeployError(f"image {path}: is a folder, expected a file")
    if isinstance(error, OSError) and error.errno is not None:  # the system's; Pillow's own have no number
        return DeployError(f"image {path}: cannot be read: {error.strerror}")
    return DeployError(f"image {path}: damaged or incomplete ({' '.join(str(error).split())[:120]})")
