"""A PNG's pixels straight into the array that the C core reads, past Pillow's own four bytes a pixel.

Pillow opens the file and says what it is; this takes its place where the pixels are decoded, which is most of what an
image costs beside its engine.  Inflating is the larger part of that: isal (Intel's ISA-L, also for ARM64) takes less
than half the time of the zlib that Pillow's wheels find on Linux, and Python's own stands in where it is not installed.
Of what is unusual about a file, or wrong, nothing is decided here: Pillow then reads it, or says why it cannot.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engines.contract import UInt8
from engines.tiling.core import library

CHANNELS = {"L": 1, "P": 1, "RGB": 3, "RGBA": 4}  # of 8 bit, as the file has them
_AT_ONCE = 2**18  # bytes inflated before their filters are taken back, while a cache of the core still has them
_BUFFER = 2**17
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_ORIENTED = (b"Raw profile type", b"XML:com.adobe.xmp")  # what Pillow also finds an orientation in


def decoded(path: Path, start: int, size: tuple[int, int], channels: int) -> UInt8 | None:
    """(H, W, channels) uint8, the samples of a PNG of 8 bit that is not interlaced; None where Pillow is to decide.

    start: where the data of its first IDAT chunk begins.  size: (width, height).  Raises OSError.
    """
    width, height = size
    out = np.empty((height, width * channels), np.uint8)
    with open(path, "rb", _BUFFER) as file, suppress(_broken()):
        file.seek(start - 8)
        if _filled(_chunks(file), channels, out):
            return out.reshape(height, width, channels)
    return None


def _filled(chunks: Iterator[bytes | None], channels: int, out: UInt8) -> bool:
    """Whether the chunks hold `out`, no less and no more."""
    height, bytes_ = out.shape
    inflate, rest, row = _decompressor()(), b"", 0
    above: UInt8 = np.zeros(bytes_, np.uint8)
    for data in chunks:
        if data is None:
            return False
        last, more = not data, True
        while more:
            found = inflate.decompress(data, _AT_ONCE)
            data = inflate.unconsumed_tail
            more = bool(data or (last and found))  # what it has held back is asked for in the end
            rows = rest + found
            count = len(rows) // (bytes_ + 1)
            rest = rows[count * (bytes_ + 1) :]
            if row + count > height or inflate.unused_data:
                return False
            if not count:
                continue
            if library().pixels_unfilter(rows, count, bytes_, channels, above.ctypes.data, out[row:].ctypes.data):
                return False
            row += count
            above = out[row - 1]
    return row == height and not rest and inflate.eof


def _chunks(file: BinaryIO) -> Iterator[bytes | None]:
    """The data of the IDAT chunks from here on, and b"" behind it; None where what follows is not plain."""
    length, kind = _head(file)
    while kind == b"IDAT":
        while length and (data := file.read(min(length, _BUFFER))):
            length -= len(data)
            yield data
        file.read(4)  # its CRC-32, which Pillow does not look at either: zlib has a checksum of its own
        length, kind = _head(file)
    while (kind in _TEXTS or kind == b"tIME") and length <= _BUFFER:
        text = file.read(length)
        if text.startswith(_ORIENTED):
            break
        file.read(4)
        length, kind = _head(file)
    yield b"" if kind == b"IEND" else None


def _head(file: BinaryIO) -> tuple[int, bytes]:
    head = file.read(8)
    return int.from_bytes(head[:4], "big"), head[4:]


@cache
def _decompressor() -> Callable[[], Any]:
    found = _isal()
    return zlib.decompressobj if found is None else found.decompressobj


def _broken() -> type[Exception]:
    found = _isal()
    return zlib.error if found is None else found.error


@cache
def _isal() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib
