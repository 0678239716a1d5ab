"""`deploy.py compare` with several models: the table and the picture of all, beside the comparison of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deploy
from calib.data.scenes import render
from engines.images.resize import resize_image, resize_labels
from engines.segmenter import open_segmenter
from pipeline.compare.models.names import names
from pipeline.evaluation.metrics import Confusion
from pipeline.graph.export import export, trace
from pipeline.graph.macs import count_macs
from tests import models
from tests.pipeline.compare.read_back import comparison_from_json

pytestmark = pytest.mark.usefixtures("exports_once")

CLASSES = 5
WINDOW = (64, 96)
FACTORS = ("0.5", "1", "1.5")
MODELS = {"tiny": "tests.models:tiny", "tiny_pup": "tests.models:tiny_pup"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for seed in range(2):
        scene = render(seed, 80, 120)
        Image.fromarray(scene.image).save(root / "images" / f"{seed}.png")
        Image.fromarray(scene.labels % CLASSES).save(root / "labels" / f"{seed}.png")
    return root


def _words(scenes: Path, out: Path, *more: str) -> list[str]:
    tiling = ["--tile", "64x96", "--stride", "48x64", "--threads", "1", "--rounds", "2"]
    return [*MODELS.values(), "--data", str(scenes), "-o", str(out), *tiling, "--precisions", "fp32", *more]


@pytest.fixture(scope="module")
def compared(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "out"
    assert deploy.main(["compare", *_words(scenes, out, "--resolutions", ",".join(FACTORS))]) == 0
    return out


@pytest.fixture(scope="module")
def result(compared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((compared / "compare.json").read_text())
    return found


def test_every_model_has_its_own_comparison(compared: Path, result: dict[str, Any]) -> None:
    assert [each["model"] for each in result["models"]] == list(MODELS.values())
    for each in result["models"]:
        own = comparison_from_json(json.loads((compared / each["name"] / "compare.json").read_text()))
        assert own.model == each["model"]
        assert (compared / each["name"] / "compare.html").is_file()
        rows = [row for row in result["rows"] if row["name"] == each["name"]]
        assert [(row["precision"], row["backend"], row["miou"]) for row in rows] == [
            (row.precision, row.backend, row.miou) for row in own.rows
        ]
        assert all((compared / row["folder"] / "manifest.json").is_file() for row in rows)


def test_sizes_are_the_networks(result: dict[str, Any]) -> None:
    """Parameters as PyTorch counts them; no rewrite applies to these, so the multiply-adds are the export's."""
    for each in result["models"]:
        module = getattr(models, each["model"].partition(":")[2])()
        assert each["parameters"] == sum(weight.numel() for weight in module.parameters())
        assert 0 < each["macs"] <= count_macs(export(trace(module, WINDOW)))


def test_other_resolutions_are_scored_on_resized_images(compared: Path, scenes: Path, result: dict[str, Any]) -> None:
    for each in result["models"]:
        assert set(each["miou_at"]) == set(FACTORS)
        row = next(row for row in result["rows"] if row["name"] == each["name"] and row["backend"] == "openvino")
        assert each["miou_at"]["1"] == row["miou"]
        with open_segmenter(compared / row["folder"]) as (segmenter, _):
            confusion = Confusion(CLASSES)
            for path in sorted((scenes / "images").iterdir()):
                image, truth = np.asarray(Image.open(path)), np.asarray(Image.open(scenes / "labels" / path.name))
                mask = segmenter.segment(resize_image(image, (40, 60)))
                confusion.update(truth, resize_labels(mask.labels, truth.shape))
        assert each["miou_at"]["0.5"] == confusion.scores(tuple(map(str, range(CLASSES)))).miou


def test_engines_of_all_models_took_turns(compared: Path, result: dict[str, Any]) -> None:
    """The times are of rounds of their own: not those of each model's comparison."""
    assert result["frame_size"] == [80, 120]
    for each in result["models"]:
        own = json.loads((compared / each["name"] / "compare.json").read_text())
        before = [row["frame_ms"]["p50"] for row in own["rows"]]
        after = [row["frame_ms"]["p50"] for row in result["rows"] if row["name"] == each["name"]]
        assert all(time > 0 for time in after)
        assert before != after


def test_the_table_and_the_picture(compared: Path) -> None:
    text = (compared / "compare.md").read_text()
    for name in MODELS:
        assert f"| {name} | custom {name} | fp32 openvino |" in text
        assert f"({name}/compare.md)" in text
    assert "mIoU x0.5" in text
    with Image.open(compared / "compare.png") as image:
        assert min(image.size) > 500
        assert np.asarray(image.convert("L")).std() > 5
    assert (compared / "compare.svg").read_text().count("tiny_pup") >= 1


def test_a_comparison_takes_the_place_of_an_earlier_one(compared: Path, scenes: Path) -> None:
    (compared / "mine.txt").write_text("kept")
    assert deploy.main(["compare", *_words(scenes, compared)]) == 2
    (compared / "mine.txt").unlink()
    assert deploy.main(["compare", *_words(scenes, compared)]) == 0
    assert json.loads((compared / "compare.json").read_text())["models"][0]["miou_at"] is None


def test_what_cannot_be_compared(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = [
        "tests.models:tiny",
        "tests.models:tiny",
        "--data",
        str(scenes),
        "-o",
        str(tmp_path / "out"),
        "--tile",
        "64x96",
    ]
    assert deploy.main(["compare", *twice]) == 2
    assert "expected different models" in capsys.readouterr().err
    missing = ["tests.models:tiny", "nowhere.pth", *twice[2:]]
    assert deploy.main(["compare", *missing]) == 2
    assert "nowhere.pth" in capsys.readouterr().err
    for wrong in ("0", "40", "1,1", "x"):
        with pytest.raises(SystemExit) as stopped:
            deploy.main(["compare", *_words(scenes, tmp_path / "out", "--resolutions", wrong)])
        assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (("demo", "demo-setr"), ["demo", "demo-setr"]),
        (("runs/b0.pth", "runs/b2.v2.onnx", "hub/segformer-b1.0/"), ["b0", "b2.v2", "segformer-b1.0"]),
        (("a/x/best.pth", "b/x/best.pth", "c.onnx"), ["a-x-best", "b-x-best", "c"]),
        (("run.1/Best.pth", "run.2/best.pth"), ["run.1-Best", "run.2-best"]),
        (("nets.one:make", "nets.two:make"), ["one-make", "two-make"]),
        (("/best.pth", "/best.onnx", "/best-2.pt"), ["best", "best-3", "best-2"]),
        (("/m/a b.pth", "/m/a-b.pth"), ["m-a-b", "m-a-b-2"]),
        (("/n/a\u00df+.pth", "/", "/n/..."), ["a\u00df", "model", "n"]),
    ],
)
def test_names_are_what_was_typed(models: tuple[str, ...], expected: list[str]) -> None:
    assert names(models) == expected
