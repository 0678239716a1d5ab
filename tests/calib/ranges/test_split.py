"""No image is on both sides, whatever the files are called; what is too small to be divided says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calib.ranges.split import FEWEST, MOST_HELD_OUT, Split, photograph, photographs, split


def _folder(path: Path, count: int) -> Path:
    path.mkdir()
    rng = np.random.default_rng(1)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(path / f"{index}.png")
    return path


def _names(division: Split) -> tuple[set[str], set[str]]:
    return {each.name for each in division.calibration}, {each.name for each in division.held_out}


@pytest.mark.parametrize(("count", "held"), [(4, 1), (7, 1), (8, 2), (40, 10), (100, MOST_HELD_OUT)])
def test_a_quarter_is_held_out_and_nothing_is_on_both_sides(tmp_path: Path, count: int, held: int) -> None:
    folder = _folder(tmp_path / "photos", count)
    division = split([str(folder)])
    calibration, held_out = _names(division)
    assert (len(calibration), len(held_out)) == (count - held, held)
    assert calibration | held_out == {f"{index}.png" for index in range(count)}
    assert not division.notes
    assert division.golden in division.held_out
    assert not set(division.selection) & set(division.report)
    assert {*division.selection, *division.report} == set(division.held_out)
    assert split([str(folder)]) == division
    if count >= 8:
        assert _names(split([str(folder)], seed=1)) != (calibration, held_out)


def test_copies_of_an_image_lie_on_one_side(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "photos", 12)
    for path in list(folder.iterdir()):
        shutil.copy(path, folder / f"copy-of-{path.name}")
    division = split([str(folder)])
    digests = [{each.sha256 for each in side} for side in (division.calibration, division.held_out)]
    assert not digests[0] & digests[1]
    assert len(digests[1]) == len(division.held_out) == 3
    assert len(division.calibration) == 18
    few = _folder(tmp_path / "one", 1)
    for index in range(20):
        shutil.copy(few / "0.png", few / f"again-{index}.png")
    assert not split([str(few)]).held_out


@pytest.mark.parametrize("count", range(1, FEWEST))
def test_a_set_that_is_too_small_says_so(tmp_path: Path, count: int) -> None:
    division = split([str(_folder(tmp_path / "photos", count))])
    assert len(division.calibration) == count
    assert not division.held_out
    assert f"{count} different image(s) are too few to hold any out" in division.notes[0]
    assert division.golden in division.calibration
    assert division.to_json()["notes"] == list(division.notes)


def test_a_reserved_image_is_never_calibrated_on(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "photos", 12)
    for name in (f"{index}.png" for index in range(12)):
        division = split([str(folder)], reserved=[photograph(folder / name).sha256])
        calibration, held_out = _names(division)
        assert name not in calibration
        assert division.golden.name == name
        assert (len(calibration), len(held_out)) == (9, 3)
    small = _folder(tmp_path / "small", 2)
    division = split([str(small)], reserved=[photograph(small / "0.png").sha256])
    assert _names(division) == ({"1.png"}, {"0.png"})
    assert not division.notes
    alone = split([str(small / "0.png")], reserved=[photograph(small / "0.png").sha256])
    assert [each.name for each in alone.calibration] == ["0.png"]
    assert "too few" in alone.notes[0]


def test_names_are_those_within_the_set(tmp_path: Path) -> None:
    _folder(tmp_path / "b", 1)
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "0.png").rename(tmp_path / "set" / "deep" / "a.png")
    (found,), notes = photographs([str(tmp_path / "set")])
    assert (found.name, found.path, notes) == ("deep/a.png", tmp_path / "set" / "deep" / "a.png", [])


def test_masks_beside_photographs_are_not_calibrated_on(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.png", "d.jpg"):
        Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / name)
    masks = ("a.png", "b_mask.png", "c_labelIds.png", "d.overlay.jpg", "d.confidence.png")
    for name in masks:
        Image.new("L", (16, 16), 3).save(tmp_path / name)
    Image.new("RGB", (16, 16)).save(tmp_path / "d.png")  # another photograph, whatever its name
    Image.new("L", (16, 16)).save(tmp_path / "e_mask.png")  # of nothing that is here
    found, notes = photographs([str(tmp_path)])
    assert sorted(each.name for each in found) == ["a.jpg", "b.jpg", "c.png", "d.jpg", "d.png", "e_mask.png"]
    assert any("5 file(s) left out that lie beside photographs as masks" in note for note in notes)
