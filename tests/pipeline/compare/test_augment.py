"""`compare --tta`: what several views gain, against scikit-learn on label maps made in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

import deploy
from calib.data.scenes import render
from engines.images.read import read_image
from engines.segmenter import open_segmenter
from engines.tiling.sizes import Resize
from engines.views.views import ImageViews

pytestmark = pytest.mark.usefixtures("exports_once")

SIZES = {"a": (64, 96), "b": (90, 150), "c": (90, 150)}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for seed, (name, size) in enumerate(SIZES.items()):
        scene = render(seed, *size)
        Image.fromarray(scene.image).save(tmp_path / "set" / "images" / f"{name}.png")
        Image.fromarray(scene.labels % 5).save(tmp_path / "set" / "labels" / f"{name}.png")
    return tmp_path / "set"


def _compare(tree: Path, out: Path, *more: str) -> int:
    windows = ["--tile", "64x96", "--stride", "48x64", "--threads", "1", "--backend", "openvino", "--rounds", "2"]
    words = ["compare", "tests.models:tiny", "--data", str(tree), "-o", str(out), "--precisions", "fp32", *windows]
    return deploy.main([*words, *more])


def test_views_get_a_row_of_their_own(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _compare(tree, tmp_path / "out", "--tta", "--scales", "1,1.5", "--resize", "short=70") == 0
    text = capsys.readouterr().out
    body = json.loads((tmp_path / "out" / "compare.json").read_text())
    reference, plain, views = body["rows"]
    assert (reference["views"], plain["views"]) == (None, None)
    assert views["views"] == {"resize": "short=70", "tta": {"scales": [1.0, 1.5], "flip": True, "merge": "mean"}}
    wanted = ImageViews(Resize.parse("short=70"), (1.0, 1.5), True)
    with open_segmenter(tmp_path / "out" / "fp32", views=lambda manifest: wanted) as (segmenter, _):
        labels = [segmenter.segment(read_image(tree / "images" / f"{name}.png")).labels.ravel() for name in SIZES]
    truth = np.concatenate([np.asarray(Image.open(tree / "labels" / f"{name}.png")).ravel() for name in SIZES])
    found = np.concatenate(labels)
    present = np.union1d(truth, found)
    assert views["miou"] == pytest.approx(jaccard_score(truth, found, labels=present, average="macro"), abs=1e-9)
    assert views["windows"] > plain["windows"]
    assert views["frame_ms"]["p50"] > plain["frame_ms"]["p50"]
    assert 0 < views["speedup"] < plain["speedup"]
    assert body["passed"] is True
    assert body["ship"] == "fp32 openvino"
    gained = f"fp32 openvino tta: {100 * (views['miou'] - plain['miou']):+.2f} points of mIoU for"
    assert gained in " ".join(text.split())
    assert gained in (tmp_path / "out" / "compare.md").read_text()
    assert gained in (tmp_path / "out" / "compare.html").read_text()


def test_without_labels_nothing_could_be_gained(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _compare(tree / "images", tmp_path / "out", "--tta") == 2
    assert "without labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
