"""Held out means held out: read off the manifest and the pixels, not off the log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deploy
from calib.data.datasets import open_dataset
from calib.data.scenes import render
from calib.ranges.split import Photograph, photograph
from engines.bundle import GOLDEN, open_bundle
from engines.files import file_sha256
from engines.proof.golden import Golden
from pipeline.provenance import not_seen

pytestmark = pytest.mark.usefixtures("exports_once")
TINY = ["tests.models:tiny", "--tile", "64x96", "--stride", "48x64", "--threads", "1", "--backend", "openvino"]
LENIENT = ["--min-agreement", "0", "--max-error", "9"]


def _scenes(root: Path, count: int, first: int = 0) -> Path:
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for seed in range(first, first + count):
        scene = render(seed, 80, 160)
        Image.fromarray(scene.image).save(root / "images" / f"{seed}.png")
        Image.fromarray(scene.labels % 5).save(root / "labels" / f"{seed}.png")
    return root


def _build(folder: Path, *more: object, precision: str = "int8") -> dict[str, Any]:
    argv = ["build-engine", *TINY, "-o", str(folder), "--precision", precision, *LENIENT, *map(str, more)]
    assert deploy.main(argv) == 0
    return dict(open_bundle(folder).manifest.photographs)


def _golden_file(folder: Path, images: Path) -> str:
    """The name of the photograph whose pixels the golden holds."""
    golden = Golden.load((folder / GOLDEN).read_bytes()).image
    height, width = golden.shape[:2]
    (found,) = (path for path in images.iterdir() if (np.asarray(Image.open(path))[:height, :width] == golden).all())
    return found.name


def _names(listed: list[dict[str, str]]) -> set[str]:
    return {Path(each["name"]).name for each in listed}


def test_the_golden_photograph_was_not_calibrated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = _scenes(tmp_path / "scenes", 8)
    record = _build(tmp_path / "b", "--calib", scenes)
    calibrated, held = _names(record["calibrated_on"]), _names(record["held_out"])
    assert (len(calibrated), len(held), record["seed"]) == (6, 2, 0)
    assert not calibrated & held
    assert _golden_file(tmp_path / "b", scenes / "images") == record["golden"]["name"].removeprefix("images/")
    assert record["golden"] in record["held_out"]
    assert record["golden_calibrated_on"] is False
    for each in (*record["calibrated_on"], *record["held_out"]):
        assert each["sha256"] == file_sha256(scenes / each["name"])
    assert deploy.main(["evaluate", str(tmp_path / "b"), str(scenes), "-o", str(tmp_path / "scores")]) == 0
    assert json.loads((tmp_path / "scores" / "evaluate.json").read_text())["dataset"]["calibrated_on"] == 6
    assert "6 of the images were calibrated on" in capsys.readouterr().out
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert (report["calibration"]["images"], report["calibration"]["photographs"]) == (6, record["calibrated_on"])


def test_a_sample_is_not_calibrated_on_wherever_it_lies(tmp_path: Path) -> None:
    scenes = _scenes(tmp_path / "scenes", 5)
    for name in ("0.png", "3.png"):
        record = _build(tmp_path / "b", "--calib", scenes, "--sample", scenes / "images" / name)
        assert name not in _names(record["calibrated_on"])
        assert _golden_file(tmp_path / "b", scenes / "images") == name


def test_a_set_too_small_to_divide_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = _scenes(tmp_path / "scenes", 2)
    record = _build(tmp_path / "b", "--calib", scenes)
    out = capsys.readouterr().out
    assert "2 different image(s) are too few to hold any out" in out
    assert "verified on images/" in out
    assert record["golden_calibrated_on"] is True
    assert record["held_out"] == []
    assert any("too few" in note for note in record["notes"])


def test_ranges_tell_which_images_they_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes, ranges = _scenes(tmp_path / "scenes", 3), tmp_path / "ranges.json"
    assert deploy.main(["calibrate", *TINY[:-2], str(scenes), "-o", str(ranges)]) == 0
    seen, strange = scenes / "images" / "1.png", _scenes(tmp_path / "other", 1, 77) / "images" / "77.png"
    capsys.readouterr()
    assert _build(tmp_path / "b", "--calib", ranges, "--sample", seen)["golden_calibrated_on"] is True
    assert "verified on 1.png, which was calibrated on" in capsys.readouterr().out
    assert _build(tmp_path / "b", "--calib", ranges, "--sample", strange)["golden_calibrated_on"] is False
    assert "which was calibrated on" not in capsys.readouterr().out
    data = json.loads(ranges.read_text())
    assert _names(data.pop("photographs")) == {"0.png", "1.png", "2.png"}
    ranges.write_text(json.dumps(data))
    assert _build(tmp_path / "b", "--calib", ranges, "--sample", strange)["golden_calibrated_on"] is None
    assert "do not say which images they saw" in capsys.readouterr().out


def _compared(folder: Path, data: Path, calib: Path) -> dict[str, Any]:
    argv = ["compare", *TINY, "--data", str(data), "--calib", str(calib), "--precisions", "int8", "--rounds", "1"]
    assert deploy.main([*argv, "-o", str(folder), "--min-agreement", "0"]) == 0
    report: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return report


def test_compare_scores_on_images_that_were_not_calibrated_on(tmp_path: Path) -> None:
    scenes = _scenes(tmp_path / "scenes", 8)
    data = _compared(tmp_path / "out", scenes, scenes)["data"]
    assert (data["images"], data["seen"], data["seen_left_out"]) == (2, 6, True)
    record = open_bundle(tmp_path / "out" / "int8").manifest.photographs
    assert record["golden_calibrated_on"] is False
    assert _names([record["golden"]]) <= _names(record["held_out"])
    assert not _names(record["calibrated_on"]) & _names(record["held_out"])
    assert deploy.main(["inspect", str(tmp_path / "out" / "int8")]) == 0


def test_what_was_seen_or_decided_on_is_not_scored(tmp_path: Path) -> None:
    dataset = open_dataset(_scenes(tmp_path / "scenes", 5))
    files = [photograph(sample.image, f"elsewhere/{index}.png") for index, sample in enumerate(dataset.samples)]
    said: list[str] = []

    def left(seen: Sequence[Photograph] | None, decided: Sequence[Photograph] = ()) -> tuple[list[str], dict[str, Any]]:
        rest, record = not_seen(dataset, seen, decided, lambda step, text: said.append(text))
        return [sample.image.stem for sample in rest.samples], record

    assert left(files[:2], files[1:3]) == (["3", "4"], {"seen": 3, "seen_left_out": True})
    assert left(()) == (["0", "1", "2", "3", "4"], {"seen": 0, "seen_left_out": False})
    assert said == ["3 of 5 images were calibrated or decided on, and are left out"]
    assert left(files) == (["0", "1", "2", "3", "4"], {"seen": 5, "seen_left_out": False})
    assert "scores are of what was seen" in said[-1]
    assert left(None)[1] == {"seen": None, "seen_left_out": False}
    assert "is not known" in said[-1]
