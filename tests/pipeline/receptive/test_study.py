"""`deploy.py receptive-field` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy
from pipeline.receptive.study import JSON, PICTURE


def _run(*argv: object) -> int:
    return deploy.main([str(word) for word in ("receptive-field", *argv)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index, size in enumerate(((64, 96), (80, 200), (40, 200))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def test_a_study_is_a_picture_and_its_numbers(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ("tests.models:tiny", "--data", photos, "--tile", "64x96", "--windows", 8, "-o", out)
    assert _run(*words) == 0
    text = capsys.readouterr().out
    assert "place(s) in images smaller than the window left out" in text
    assert "all through keys at 32 px" in text
    body = json.loads((out / JSON).read_text())
    assert [row["name"] for row in body["fields"]][-3:] == ["before fusing", "after fusing", "decoder output"]
    assert all(row["radius"]["0.5"] <= row["radius"]["0.99"] for row in body["fields"])
    assert body["fields"][0]["theory"] == {
        "local": [15, 15], "corner": [25, 41], "key_strides": [32], "declined": "", "global": True,
    }  # fmt: skip
    assert body["strides"][0]["share"] > body["strides"][-1]["share"]
    with Image.open(out / PICTURE) as picture:
        assert min(picture.size) > 800
    first = (out / JSON).read_bytes()
    assert _run(*words) == 0  # in place of the one before, and with the same numbers
    assert (out / JSON).read_bytes() == first


def test_rendered_scenes_stand_in_for_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("tests.models:tiny_pup", "--tile", "64x96", "--windows", 1, "-o", tmp_path / "out", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["images"] == "1 window(s) of rendered scenes"
    assert [row["theory"]["key_strides"] for row in body["fields"]] == [[16]] * len(body["fields"])


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("tests.pipeline.receptive.networks:labels", (), "ends in labels"),
        ("tests.pipeline.receptive.networks:frozen", (), "is not differentiable, or runs under torch.no_grad"),
        ("tests.models:tiny", ("--tile", "96x128"), "expected some that fill a window of 128x96"),
        ("tests.models:tiny", ("--tile", "7"), "choose another with --tile"),
        ("nowhere", (), "no such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    model: str, more: tuple[str, ...], said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "1.png").unlink()
    out = tmp_path / "out"
    assert _run(model, "--data", photos, "--tile", "64x96", *more, "-o", out) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not out.exists()


@pytest.mark.slow
def test_an_onnx_is_measured_by_changes_of_its_pixels(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle's graph is the factory's network: their fields are one, but for chance and the size of blocks."""
    found = []
    for model in (tiny_bundle / "model.onnx", "tests.models:tiny"):
        assert _run(model, "--tile", "64x96", "--windows", 8, "-o", tmp_path / "out", "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    changed = found[0]
    assert "by changes of their pixels" in changed["images"]
    (row,) = changed["fields"]
    assert row["theory"]["key_strides"] == [32]
    shares = [[each["share"] for each in body["strides"]] for body in found]
    assert np.abs(np.subtract(*shares)).max() < 0.15
    assert np.ptp(shares[1]) > 0.5


def test_other_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert _run("tests.models:tiny", "--tile", "64x96", "-o", tmp_path) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"
