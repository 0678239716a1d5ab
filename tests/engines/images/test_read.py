"""Reading images, against Pillow and numpy; and what damaged files turn into."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile, ImageOps

from engines.errors import DeployError
from engines.images.read import read_image, read_labels, read_picture

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (23, 31, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm"])
def test_lossless_formats_come_back_bit_by_bit(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}")
    assert np.array_equal(read_image(tmp_path / f"a{suffix}"), PIXELS)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif", "a.jp2", "a.gif"])
def test_lossy_formats_equal_pillow(tmp_path: Path, name: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert np.array_equal(read_image(tmp_path / name), np.asarray(image.convert("RGB")))


def test_heic_is_read_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "a.heic", quality=95)
    assert np.abs(read_image(tmp_path / "a.heic").astype(int) - smooth).mean() < 4
    (tmp_path / "b.heic").write_bytes(b"no image")
    with pytest.raises(DeployError, match=r"HEIC without pillow-heif; pip install 'edgeseg\[images\]'"):
        read_image(tmp_path / "b.heic")


def test_without_its_extra_a_bad_file_is_called_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png")  # from here on the extra is not looked for again
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for name, said in (("b.heic", "HEIC without pillow-heif"), ("b.png", "not an image, or of an unknown format")):
        (tmp_path / name).write_bytes(b"no image")
        with pytest.raises(DeployError, match=said):
            read_image(tmp_path / name)


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")
    with pytest.raises(DeployError, match="is a Git LFS pointer, not the file"):
        read_image(tmp_path / "a.jpg")


def test_the_decoders_own_lines_never_reach_the_terminal(tmp_path: Path) -> None:
    """In a process of its own: pytest's log capture would hide what logging prints as its last resort."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "TIFF", compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "bands.tif", np.zeros((20, 30, 4), np.uint16), photometric="minisblack")
    for size in range(8, len(buffer.getvalue()), 97):
        (tmp_path / f"{size}.tif").write_bytes(buffer.getvalue()[:size])
    code = (
        "import sys; from pathlib import Path; from engines.images.read import read_image\n"
        "from engines.errors import DeployError\n"
        "for path in Path(sys.argv[1]).iterdir():\n"
        "    try: read_image(path)\n"
        "    except DeployError: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)
    assert read_image(tmp_path / "a.png").shape == ((31, 23, 3) if orientation >= 5 else (23, 31, 3))


def test_alpha_is_dropped_and_grey_is_repeated(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (23, 31, 1), np.uint8)
    Image.fromarray(np.concatenate([PIXELS, alpha], 2)).save(tmp_path / "rgba.png")
    Image.fromarray(PIXELS[:, :, 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.concatenate([PIXELS[:, :, :1], alpha], 2)).save(tmp_path / "la.png")
    grey = np.repeat(PIXELS[:, :, :1], 3, 2)
    assert np.array_equal(read_image(tmp_path / "rgba.png"), PIXELS)
    assert np.array_equal(read_image(tmp_path / "grey.png"), grey)
    assert np.array_equal(read_image(tmp_path / "la.png"), grey)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = RNG.integers(0, 65536, (23, 31)).astype(np.uint16)
    values[0, :3] = 0, 65535, 257
    Image.fromarray(values).save(tmp_path / name)
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    assert np.array_equal(read_image(tmp_path / name), np.repeat(expected[:, :, None], 3, 2))


def test_16_bit_colour_is_within_a_level(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (5, 7, 3)).astype(">u2")
    values[0, 0] = 0, 65535, 257
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    pixels = read_image(tmp_path / "a.png")
    assert np.abs(pixels - values / 257).max() < 1
    assert pixels[0, 0].tolist() == [0, 255, 1]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.png", "a.webp"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read_image(tmp_path / name), np.asarray(frames[0]))
    assert ("moves, and its first picture was labelled" in read_picture(tmp_path / name).note) == (name != "a.tif")
    frames[0].save(tmp_path / name, save_all=True, lossless=True)
    assert read_picture(tmp_path / name).note == ""


@pytest.mark.parametrize("mode", ["1", "P", "CMYK"])
def test_other_modes_equal_pillow(tmp_path: Path, mode: str) -> None:
    name = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(PIXELS).convert(mode).save(name)
    with Image.open(name) as image:
        assert np.array_equal(read_image(name), np.asarray(image.convert("RGB")))


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("P").save(tmp_path / "a.png", transparency=bytes([0] * 10))
    assert read_image(tmp_path / "a.png").shape == (23, 31, 3)


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[:, :, 0].astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DeployError, match="floating-point"):
        read_image(tmp_path / "a.tif")


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    (tmp_path / "b.png").write_bytes(b"")
    for name in ("a.png", "b.png"):
        with pytest.raises(DeployError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DeployError, match="an empty file"):
        read_image(tmp_path / "b.png")
    with pytest.raises(DeployError, match="no such file"):
        read_image(tmp_path / "c.png")
    with pytest.raises(DeployError, match="is a folder"):
        read_image(tmp_path)


def test_trouble_of_the_system_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeployError, match="cannot be read: File name too long"):
        read_image(tmp_path / ("a" * 300))
    for error, message in ((PermissionError(13, "Permission denied"), "Permission denied"), (MemoryError(), "memory")):
        monkeypatch.setattr(Image, "open", _raising(error))
        with pytest.raises(DeployError, match=message):
            read_image(tmp_path / "a.png")


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_no_program_is_started_for_an_image(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.eps")  # Pillow would hand it to Ghostscript
    with pytest.raises(DeployError, match="expected PNG, JPEG"):
        read_image(tmp_path / "a.eps")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (30000, 30000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DeployError, match=r"30000x30000.*--max-pixels"):
        read_image(tmp_path / "bomb.png")


def test_large_images_are_read_without_pillows_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (23, 31, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "TIFF-LZW", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000"])
def test_a_cut_file_is_never_half_an_image(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is cut, even where another library has told Pillow to put up with that."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    buffer = io.BytesIO()
    compression = {"compression": "tiff_lzw"} if kind == "TIFF-LZW" else {}
    Image.fromarray(PIXELS).save(buffer, kind.split("-")[0], **compression)
    data = buffer.getvalue()
    path = tmp_path / "cut"
    path.write_bytes(data)
    whole = read_image(path)
    for size in range(0, len(data), 5):
        path.write_bytes(data[:size])
        try:
            assert np.array_equal(read_image(path), whole)  # only a trailer is missing
        except DeployError:
            continue
        assert len(data) - size < 30
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_damaged_files_are_an_error_or_a_whole_image(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a street"
    Image.fromarray(PIXELS).save(buffer, kind, **({} if kind == "BMP" else {"exif": exif}))
    data = buffer.getvalue()
    path = tmp_path / "damaged"
    outcomes = {"error": 0, "image": 0}
    for trial in range(400):
        rng = np.random.default_rng(trial)
        damaged = bytearray(data)
        if trial % 2:
            damaged = damaged[: int(rng.integers(len(data)))]
        else:
            for place in rng.integers(0, len(data), 3):
                damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            pixels = read_image(path, max_pixels=100_000)
        except DeployError:
            outcomes["error"] += 1
        else:
            outcomes["image"] += 1
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
    assert outcomes["error"] >= 100  # cut files are never silently completed with grey


def test_labels_are_read_as_numbers(tmp_path: Path) -> None:
    labels = RNG.integers(0, 256, (9, 7), np.uint8)
    image = Image.fromarray(labels)
    image.save(tmp_path / "grey.png")
    image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "index.png")
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "deep.png")
    for name in ("grey", "index", "deep"):
        assert np.array_equal(read_labels(tmp_path / f"{name}.png"), labels)
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "large.png")
    with pytest.raises(DeployError, match="300"):
        read_labels(tmp_path / "large.png")
    Image.fromarray(labels).save(tmp_path / "grey.jpg")
    with pytest.raises(DeployError, match="JPEG"):
        read_labels(tmp_path / "grey.jpg")
    Image.fromarray(PIXELS).save(tmp_path / "rgb.png")
    with pytest.raises(DeployError, match="RGB"):
        read_labels(tmp_path / "rgb.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    Image.fromarray(RNG.integers(0, 256, (600, 800, 3), np.uint8)).save(path, kind)

    def cut(pixels: int) -> None:
        assert pixels == 480_000
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 8)

    with pytest.raises(DeployError, match="damaged or incomplete"):
        read_picture(path, admit=cut)


def test_a_file_that_grows_while_it_is_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)

    def grow(pixels: int) -> None:
        with open(path, "ab") as file:
            file.write(bytes(1000))

    assert np.array_equal(read_picture(path, admit=grow).pixels, PIXELS)
