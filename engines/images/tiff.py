"""TIFF files that Pillow does not read, or not in all their bits: several bands, floats, 16-bit colour."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.errors import DeployError

SUFFIXES = frozenset({".tif", ".tiff"})
_NODATA = 42113  # the tag that GDAL writes
# What it raises on damaged files, beside its own.
_DAMAGED = (ValueError, IndexError, KeyError, TypeError, MemoryError, ZeroDivisionError, struct.error)
_INSTALL = "pip install 'edgeseg[images]'"


def is_tiff(path: Path) -> bool:
    """By its first bytes: either byte order, BigTIFF too.  False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}
    except OSError:
        return False


def read_tiff(path: Path, max_pixels: int, admit: Callable[[int], None]) -> tuple[NDArray[Any], float | None]:
    """The first page as (H, W, B) in its own type, and the value that stands for nothing, or None.

    admit: told how many pixels will be decoded, and may wait.
    Raises DeployError, also where tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DeployError(
            f"image {path}: a TIFF that Pillow does not read in full (bands, floats, 16-bit colour), expected tifffile "
            f"for it; {_INSTALL}"
        ) from error
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its own lines are not for our user
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            if page.imagewidth * page.imagelength > max_pixels:
                raise DeployError(
                    f"image {path}: got {page.imagewidth}x{page.imagelength}, more than {max_pixels} pixels; "
                    "if that is no accident, raise --max-pixels"
                )
            admit(page.imagewidth * page.imagelength)
            values, tag = page.asarray(), page.tags.get(_NODATA)
            axes, text = page.axes, "" if tag is None else str(tag.value).strip("\0 ")
    except OSError as error:
        raise DeployError(f"image {path}: cannot be read: {error.strerror or error}") from error
    except (tifffile.TiffFileError, *_DAMAGED) as error:
        line = " ".join(str(error).split())[:120]
        more = f"; {_INSTALL}" if "imagecodecs" in line else ""
        raise DeployError(f"image {path}: damaged, incomplete or packed in an unknown way ({line}){more}") from error
    if sorted(axes.replace("S", "")) != ["X", "Y"] or values.ndim != len(axes) or values.dtype.kind not in "iuf":
        raise DeployError(
            f"image {path}: got axes {axes} of {values.dtype}, expected rows, columns and bands of numbers"
        )
    if "S" not in axes:
        values, axes = values[..., None], axes + "S"
    return values.transpose([axes.index(axis) for axis in "YXS"]), _number(text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
