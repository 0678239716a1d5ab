"""The bands of an image file, of any number and type -> the bytes that a network takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.errors import DeployError
from engines.spec import Pixels

Bool = NDArray[np.bool_]
DARK = 8  # times darker than its type allows: 13 bits or fewer in 16
_GREY = (19595, 38470, 7471)  # of 65536: ITU-R 601's luma, as Pillow rounds it

# 16 bit -> 8 bit: round(v / 257), so that 65535 -> 255.
TO_8_BIT: UInt8 = ((np.arange(65536) + 128) // 257).astype(np.uint8)


@dataclass(frozen=True)
class Decoded:
    """pixels: (H, W, C) uint8.

    hidden: (H, W) bool, where the file has nothing: alpha 0, its nodata value, or NaN; None where it has everything.
    note: what the user should hear about how it was read, or "".
    """

    pixels: UInt8
    hidden: Bool | None = None
    note: str = ""


def picture_of(values: NDArray[Any], wanted: Pixels, path: Path, nodata: float | None = None) -> Decoded:
    """values: (H, W, B) of any type, the file's bands.  nodata: the value that stands for nothing.

    One band for three is repeated, and three for one become their luma.  Raises DeployError.
    """
    values = _chosen(values, wanted, path)
    hidden: Bool | None = None
    if nodata is not None:
        hidden = (values == nodata).all(2)
    if values.dtype.kind == "f":
        missing = np.isnan(values).any(2)
        hidden = missing if hidden is None else hidden | missing
    pixels, note = _bytes(values, wanted, path, hidden)
    if pixels.shape[2] == 3 and wanted.count == 1:
        pixels = ((pixels @ np.array(_GREY, np.uint32) + 32768) >> 16).astype(np.uint8)[:, :, None]
    elif pixels.shape[2] == 1 and wanted.count == 3:
        pixels = np.repeat(pixels, 3, 2)
    return Decoded(np.ascontiguousarray(pixels), hidden if hidden is not None and hidden.any() else None, note)


def _chosen(values: NDArray[Any], wanted: Pixels, path: Path) -> NDArray[Any]:
    count = values.shape[2]
    if wanted.bands:
        if max(wanted.bands) > count:
            raise DeployError(f"image {path}: got {count} band(s), expected {max(wanted.bands)} for --bands at least")
        return values[:, :, [band - 1 for band in wanted.bands]]
    if count == wanted.count or (count, wanted.count) in {(1, 3), (3, 1)}:
        return values
    numbers = ",".join(str(index + 1) for index in range(wanted.count))
    advice = f"choose them with --bands {numbers} or others, counted from 1" if count > wanted.count else "give others"
    raise DeployError(f"image {path}: got {count} band(s) of {values.dtype}, expected {wanted.count}; {advice}")


def _bytes(values: NDArray[Any], wanted: Pixels, path: Path, hidden: Bool | None) -> tuple[UInt8, str]:
    if values.dtype.kind == "c":
        raise DeployError(f"image {path}: got complex numbers, expected real ones; write their magnitude")
    if wanted.scale is not None:
        low, high = wanted.scale
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return np.clip(np.rint(np.nan_to_num(scaled, nan=0.0)), 0, 255).astype(np.uint8), ""
    if values.dtype == np.uint8:
        return values, ""
    seen = values if hidden is None else values[~hidden]
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
        kind = "floating-point pixels" if values.dtype.kind == "f" else "values"
        span = f" {seen.min():g}..{seen.max():g}" if seen.size else ""
        raise DeployError(
            f"image {path}: got {kind}{span}, expected 8 or 16 bit integers; say with --scale LOW..HIGH which become "
            "black and white"
        )
    return TO_8_BIT[values], too_dark(int(seen.max()) if seen.size else 0, path)


def too_dark(largest: int, path: Path) -> str:
    """The note on a 16-bit image that uses little of its range; "" where it does not."""
    if not 0 < largest < 65536 // DARK:
        return ""
    bits = largest.bit_length()
    return (
        f"{path.name} uses 0..{largest} of 16 bits and comes out {65535 / largest:.0f} times too dark; "
        f"--scale 0..{2**bits - 1} takes {bits} bits as they are"
    )


def shown(image: UInt8) -> UInt8:
    """(H, W, 3) uint8 to look at: of an image (H, W, C) its first three channels, or the first one as grey."""
    return image if image.shape[2] == 3 else image[:, :, [0, 1, 2] if image.shape[2] > 3 else [0, 0, 0]]
