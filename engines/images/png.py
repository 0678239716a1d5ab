"""A PNG's pixels straight into the array that the C core reads, past Pillow's four bytes a pixel; and label maps out.

Pillow opens the file and says what it is; this takes its place where the pixels are decoded, which is most of what an
image costs beside its engine.  Inflating is the larger part of that: isal (Intel's ISA-L, also for ARM64) takes less
than half the time of the zlib that Pillow's wheels find on Linux, and Python's own stands in where it is not installed.
Of what is unusual about a file, or wrong, nothing is decided here: Pillow then reads it, or says why it cannot.
"""

from __future__ import annotations

import struct
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
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP, PAETH = 2, 4  # filters: what stands above is taken off, for labels; a better guess, for what changes all over
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


def write(file: BinaryIO, values: UInt8, palette: bytes, filter_: int) -> None:
    """values: (H, W) uint8, rows of contiguous bytes.  palette: 3 bytes a colour, b"" for grey.  filter_: UP or PAETH.

    Raises OSError.
    """
    height, width = values.shape
    file.write(_SIGNATURE)
    file.write(_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3 if palette else 0, 0, 0, 0)))
    if palette:
        file.write(_chunk(b"PLTE", palette))
    deflate, some = _compressor()(), max(1, _AT_ONCE // (width + 1))
    above, rows = np.zeros(width, np.uint8), np.empty((min(some, height), width + 1), np.uint8)
    packed = b""
    for row in range(0, height, some):
        part = values[row : row + some]
        library().pixels_filter(
            filter_, part.ctypes.data, len(part), width, part.strides[0], above.ctypes.data, rows.ctypes.data
        )
        above = part[-1]
        packed += deflate.compress(rows[: len(part)])
        if len(packed) >= _BUFFER:
            file.write(_chunk(b"IDAT", packed))
            packed = b""
    file.write(_chunk(b"IDAT", packed + deflate.flush()))
    file.write(_chunk(b"IEND", b""))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))))


def _head(file: BinaryIO) -> tuple[int, bytes]:
    head = file.read(8)
    return int.from_bytes(head[:4], "big"), head[4:]


@cache
def _decompressor() -> Callable[[], Any]:
    found = _isal()
    return zlib.decompressobj if found is None else found.decompressobj


@cache
def _compressor() -> Callable[[], Any]:
    """zlib's strategy for runs, which its own slower levels do not beat on labels; isal is quicker still."""
    found = _isal()
    if found is None:
        return lambda: zlib.compressobj(1, strategy=zlib.Z_RLE)
    return lambda: found.compressobj(1)


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
