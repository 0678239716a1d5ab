"""PNGs that are decoded past Pillow: the pixels are Pillow's, and so is the verdict on all that is not plain.

And those that are written: Pillow reads them.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.errors import DeployError
from engines.images import png
from engines.images.png import _chunk
from engines.images.read import read_label_colours, read_labels, read_picture

RNG = np.random.default_rng(0)
COLOUR_TYPES = {"L": 0, "RGB": 2, "P": 3, "RGBA": 6}
PALETTE = RNG.integers(0, 256, 768, np.uint8).tobytes()


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def inflating(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)
    _forget()
    yield
    _forget()


def _forget() -> None:
    png._compressor.cache_clear()
    png._isal.cache_clear()
    png._decompressor.cache_clear()


def _png(
    mode: str, width: int, rows: bytes, height: int, *, piece: int = 65536, between: bytes = b"", behind: bytes = b"",
    idat: bytes | None = None,
) -> bytes:  # fmt: skip
    """rows: as they stand in the file, each behind its filter.  piece: bytes of an IDAT chunk."""
    data = zlib.compress(rows) if idat is None else idat
    return b"".join([
        b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[mode], 0, 0, 0)),
        _chunk(b"PLTE", PALETTE) if mode == "P" else b"", between,
        *(_chunk(b"IDAT", data[start : start + piece]) for start in range(0, len(data) or 1, piece)),
        behind, _chunk(b"IEND", b""),
    ])  # fmt: skip


def _rows(width: int, height: int, mode: str, filters: list[int]) -> bytes:
    """Any bytes are some picture."""
    body = RNG.integers(0, 256, (height, width * png.CHANNELS[mode]), np.uint8)
    return np.concatenate([np.resize(np.array(filters, np.uint8), (height, 1)), body], 1).tobytes()


def _judged(path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """What is read, with Pillow's decoder alone, in bytes; or the error."""
    with monkeypatch.context() as patch:
        patch.setattr(png, "decoded", lambda *args: None)
        return _outcome(path)


def _outcome(path: Path) -> object:
    try:
        found = read_picture(path)
    except DeployError as error:
        return str(error)
    hidden = None if found.hidden is None else found.hidden.tobytes()
    return found.pixels.shape, found.pixels.tobytes(), hidden, found.note


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each PNG whether it was decoded past Pillow."""
    seen: list[bool] = []
    own = png.decoded

    def watched(path: Path, start: int, size: tuple[int, int], channels: int) -> object:
        found = own(path, start, size, channels)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(png, "decoded", watched)
    return seen


@pytest.mark.parametrize("mode", COLOUR_TYPES)
@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [4, 2, 3, 0, 1]], ids=str)
def test_every_filter_equals_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[bool], mode: str, filters: list[int]
) -> None:
    for width, height, piece in ((1, 1, 9), (7, 5, 8), (641, 33, 8192), (300, 900, 70_000)):
        path = tmp_path / f"{width}.png"
        path.write_bytes(_png(mode, width, _rows(width, height, mode, filters), height, piece=piece))
        assert _outcome(path) == _judged(path, monkeypatch)
    assert taken == [True] * 4


def test_a_picture_of_few_bytes_is_inflated_in_bounded_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[bool]
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (3000, 2000), (1, 2, 3)).save(path)
    assert _outcome(path) == _judged(path, monkeypatch)
    assert taken == [True]


def test_labels_and_their_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[bool]) -> None:
    path = tmp_path / "a.png"
    for mode in ("L", "P", "RGB", "RGBA"):
        path.write_bytes(_png(mode, 40, _rows(40, 30, mode, [0, 4]), 30))
        with Image.open(path) as image:
            assert np.array_equal(read_label_colours(path), np.asarray(image.convert("RGBA").convert("RGB")))
            if mode in ("L", "P"):
                assert np.array_equal(read_labels(path), np.asarray(image))
    assert taken == [True] * 6


TEXT = _chunk(b"tEXt", b"Software\0some editor") + _chunk(b"tIME", bytes(7))
EXIF = Image.Exif()
EXIF[0x0112] = 6
TURNED = _chunk(b"eXIf", EXIF.tobytes()[6:])
XMP = _chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
ROWS = _rows(31, 23, "RGB", [1, 4])
GREEN = _chunk(b"tRNS", bytes((0, 1, 0, 200, 0, 3)))
PLAIN = {
    "text before": _png("RGB", 31, ROWS, 23, between=TEXT),
    "text behind": _png("RGB", 31, ROWS, 23, behind=TEXT),
    "a colour that is clear": _png("RGB", 31, ROWS, 23, between=GREEN),
    "palette with alpha": _png("P", 31, _rows(31, 23, "P", [0]), 23, between=_chunk(b"tRNS", bytes(range(0, 250, 5)))),
    "bytes behind the end": _png("RGB", 31, ROWS, 23) + b"more",
    "empty IDAT": _png("RGB", 31, ROWS, 23, between=_chunk(b"IDAT", b"")),
}
PILLOWS = {
    "turned, said behind": _png("RGB", 31, ROWS, 23, behind=TURNED),
    "turned, in XMP behind": _png("RGB", 31, ROWS, 23, behind=XMP),
    "a row too few": _png("RGB", 31, ROWS[:-94], 23),
    "a row too many": _png("RGB", 31, ROWS + ROWS[:94], 23),
    "bytes behind the last row": _png("RGB", 31, ROWS + b"abc", 23),
    "bytes behind the stream": _png("RGB", 31, b"", 23, idat=zlib.compress(ROWS) + b"abc"),
    "wrong checksum": _png("RGB", 31, b"", 23, idat=zlib.compress(ROWS)[:-1] + b"\0"),
    "no checksum": _png("RGB", 31, b"", 23, idat=zlib.compress(ROWS)[:-4]),
    "no zlib": _png("RGB", 31, b"", 23, idat=b"no such thing"),
    "no data": _png("RGB", 31, b"", 23, idat=b""),
    "filter 5": _png("RGB", 31, _rows(31, 23, "RGB", [5]), 23),
    "cut": _png("RGB", 31, ROWS, 23)[:-700],
    "no IEND": _png("RGB", 31, ROWS, 23)[:-12],
}
BEFORE = {
    "turned": _png("RGB", 31, ROWS, 23, between=TURNED),
    "turned, in XMP": _png("RGB", 31, ROWS, 23, between=XMP),
}  # fmt: skip


@pytest.mark.parametrize("name", [*PLAIN, *PILLOWS, *BEFORE])
def test_what_is_unusual_is_as_pillow_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[bool], name: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes({**PLAIN, **PILLOWS, **BEFORE}[name])
    assert _outcome(path) == _judged(path, monkeypatch)
    assert taken == ([] if name in BEFORE else [name in PLAIN])


@pytest.mark.parametrize("filter_", [png.UP, png.PAETH])
@pytest.mark.parametrize("size", [(1, 1), (1, 70_001), (300, 1), (23, 31), (900, 1100), (2, 300_000)], ids=str)
def test_what_is_written_is_what_pillow_reads(tmp_path: Path, filter_: int, size: tuple[int, int]) -> None:
    blocks = np.kron(RNG.integers(0, 256, (9, 9), np.uint8), np.ones((-(-size[0] // 9), -(-size[1] // 9)), np.uint8))
    noise = RNG.integers(0, 256, size, np.uint8)
    for values in (blocks[: size[0], : size[1]], noise, noise[::-1], np.full(size, 255, np.uint8)):
        for palette in (b"", PALETTE):
            with open(tmp_path / "a.png", "wb") as file:
                png.write(file, values, palette, filter_)
            with Image.open(tmp_path / "a.png") as image:
                assert np.array_equal(np.asarray(image), values)
                assert image.mode == ("P" if palette else "L")
                assert not palette or bytes(image.getpalette() or ()) == palette
            with Image.open(tmp_path / "a.png") as image:
                image.verify()  # each chunk's checksum


def test_damaged_files_end_as_pillow_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes changed, cut out and doubled: whether there is a picture, which, and what is said is the same."""
    files = [_png("RGB", 31, ROWS, 23, piece=300, behind=TEXT), _png("RGBA", 9, _rows(9, 40, "RGBA", [2]), 40)]
    path = tmp_path / "a.png"
    read = 0
    for _ in range(150):
        data = bytearray(files[RNG.integers(2)])
        for _ in range(RNG.integers(1, 4)):
            at, kind = int(RNG.integers(8, len(data))), RNG.integers(4)
            if kind < 2:
                data[at] = RNG.integers(256)
            elif kind == 2:
                del data[at : at + int(RNG.integers(1, 40))]
            else:
                data[at:at] = data[at : at + int(RNG.integers(1, 40))]
        path.write_bytes(data)
        found = _outcome(path)
        assert found == _judged(path, monkeypatch), io.BytesIO(data).getvalue().hex()
        read += not isinstance(found, str)
    assert 0 < read < 150
