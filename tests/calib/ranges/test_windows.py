"""Which windows are drawn, that they are the runtime's own, and every way in which a folder can be wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.ranges.split import photographs
from calib.ranges.windows import CalibrationSet, draw_from, draw_windows
from engines.errors import DeployError
from engines.images.read import read_image
from engines.images.resize import sized
from engines.proof.golden import windows_of
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling

TILING = Tiling(64, 96, 48, 64, padding="reflect")
SPEC = ModelSpec("tiny", "", ("a", "b"), ((0, 0, 0), (1, 1, 1)), channel_order="BGR")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, size in (("deep/a.jpg", (120, 200)), ("b.png", (64, 96)), ("c.webp", (33, 35)), ("d.png", (200, 300))):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def _draw(folder: Path, count: int = 64, seed: int = 0) -> CalibrationSet:
    return draw_windows([str(folder)], TILING, count, seed)


def test_windows_are_the_runtimes_own(folder: Path) -> None:
    """All windows of all images, bit for bit what golden and segmenter feed to the engine, each once."""
    drawn = _draw(folder, 1000)
    ours = [window for _, window in drawn.inputs(SPEC, TILING)]
    wanted = [
        window
        for path in drawn.paths
        for window in windows_of(np.asarray(Image.open(path).convert("RGB")), SPEC, TILING)
    ]
    assert len(ours) == len(wanted) == len(set(drawn.places))
    for window, other in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(window, other)
    assert any("all that 4 images have" in note for note in drawn.notes)


def test_windows_are_cut_from_what_images_are_brought_to(folder: Path) -> None:
    tiling = replace(TILING, resize="short=100")
    drawn = draw_windows([str(folder)], tiling, 1000)
    ours = [window for _, window in drawn.inputs(SPEC, tiling)]
    images = [sized(read_image(path), SPEC, tiling) for path in drawn.paths]
    assert sorted(image.shape[:2] for image in images) == [(100, 106), (100, 150), (100, 150), (100, 167)]
    wanted = [window for image in images for window in windows_of(image, SPEC, TILING)]
    assert len(ours) == len(wanted)
    assert all(np.array_equal(one, other) for one, other in zip(ours, wanted, strict=True))


@pytest.mark.parametrize(("count", "images"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_every_image_has_its_turn(folder: Path, count: int, images: int) -> None:
    drawn = _draw(folder, count)
    assert (len(drawn.places), drawn.images) == (count, images)
    assert len(set(drawn.places)) == count


def test_a_seed_draws_the_same_and_another_seed_others(folder: Path) -> None:
    assert _draw(folder, 9, 3) == _draw(folder, 9, 3)
    assert _draw(folder, 9, 3).places != _draw(folder, 9, 4).places


def test_continuing_in_the_middle_gives_the_same_windows(folder: Path) -> None:
    drawn = _draw(folder, 9)
    whole = list(drawn.inputs(SPEC, TILING))
    for (place, window), (other, rest) in zip(whole[5:], drawn.inputs(SPEC, TILING, 5), strict=True):
        assert place == other
        np.testing.assert_array_equal(window, rest)


def test_digest_follows_names_and_contents_only(folder: Path, tmp_path: Path) -> None:
    digest = _draw(folder).sha256
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert _draw(moved).sha256 == digest
    (moved / "b.png").rename(moved / "e.png")
    renamed = _draw(moved).sha256
    shutil.copy(moved / "e.png", moved / "f.png")
    assert len({digest, renamed, _draw(moved).sha256}) == 3


def test_labels_of_a_data_set_are_left_out(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(folder, tmp_path / "set" / split / "images")
        shutil.copytree(folder, tmp_path / "set" / split / "labels")
    drawn = _draw(tmp_path / "set")
    assert len(drawn.paths) == 8
    assert {path.relative_to(tmp_path / "set").parts[1] for path in drawn.paths} == {"images"}
    assert any("8 file(s) outside" in note for note in drawn.notes)


def test_single_image_is_allowed_with_a_warning(folder: Path) -> None:
    drawn = draw_windows([str(folder / "d.png")], TILING, 4)
    assert len(drawn.places) == 4
    assert "only one image, d.png" in drawn.notes[0]


def test_bad_sets_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for inputs, message in (
        ([tmp_path / "empty"], "got nothing, expected images"),
        ([tmp_path / "none"], "no such file or folder"),
    ):
        with pytest.raises(DeployError, match=message):
            draw_windows([str(path) for path in inputs], TILING)
    with pytest.raises(DeployError, match="--windows: got 0"):
        _draw(folder, 0)
    (folder / "z.png").write_bytes((folder / "d.png").read_bytes()[:900])
    with pytest.raises(DeployError, match=r"z\.png: damaged or incomplete"):
        _draw(folder)


def test_photographs_are_read_as_stored_where_that_is_asked(tmp_path: Path) -> None:
    """Turned by EXIF they have other windows."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = photographs([str(tmp_path)])[0]
    for upright, expected in ((False, pixels), (True, np.rot90(pixels, -1))):
        drawn = draw_from(found, TILING, wanted=replace(SPEC.pixels, upright=upright))
        for window, other in zip(drawn.inputs(SPEC, TILING), windows_of(expected, SPEC, TILING), strict=True):
            np.testing.assert_array_equal(window[1], other)
