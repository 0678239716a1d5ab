"""`deploy.py calibrate` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import deploy
from calib.data.scenes import render
from calib.ranges.ranges import Ranges
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.fingerprint import graph_sha256
from pipeline.precision.calibrate import graph_of
from pipeline.precision.observe import quantizable_tensors

pytestmark = pytest.mark.usefixtures("exports_once")
TINY = ("tests.models:tiny", "--tile", "64x96", "--stride", "48x64")


def _run(*argv: object) -> int:
    return deploy.main([str(word) for word in ("calibrate", *argv)])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for seed in range(3):
        scene = render(seed, 200, 320)
        Image.fromarray(scene.image).save(folder / "images" / f"{seed}.png")
        Image.fromarray(scene.labels).save(folder / "labels" / f"{seed}.png")
    return folder


def test_demo_on_rendered_scenes(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ranges.json"
    argv = ("demo", scenes, "-o", output, "--tile", 128, "--windows", 4, "--method", "mse")
    assert _run(*argv, "--json") == 0
    captured = capsys.readouterr()
    report, ranges = json.loads(captured.out), Ranges.load(output)
    assert "3 file(s) outside of the data set's image folders left out" in captured.err
    assert (report["method"], report["images"], report["windows"]) == ("mse", 3, 4)
    assert report["tensors"] == len(ranges.tensors)
    graph = graph_of(load_source("demo", (128, 128), SourceOptions()))
    ranges.require(graph_sha256(graph.model), [item.name for item in quantizable_tensors(graph)])
    assert all(0 < tensor.amax <= max(-tensor.low, tensor.high) for tensor in ranges.tensors.values())
    assert [name for name, tensor in ranges.tensors.items() if not tensor.channel_amax] == ["logits"]
    assert [file.name for file in tmp_path.iterdir()] == ["ranges.json"]
    first = output.read_bytes()
    assert _run(*argv) == 0
    assert output.read_bytes() == first


def test_methods_and_seeds(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ranges(*options: object) -> Ranges:
        assert _run(*TINY, scenes, "-o", tmp_path / "r.json", "--windows", 5, *options) == 0
        return Ranges.load(tmp_path / "r.json")

    largest, median = ranges("--method", "max"), ranges("--method", "percentile", "--percentile", 50)
    assert (largest.method, median.method) == ("max", "percentile:50")
    layers = [name for name, tensor in largest.tensors.items() if tensor.channel_amax]
    assert all(median.tensors[name].amax < largest.tensors[name].amax for name in layers)
    other = ranges("--method", "max", "--seed", 1)
    assert other.dataset_sha256 == largest.dataset_sha256
    assert other.tensors != largest.tensors


def test_one_image_smaller_than_the_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(render(0, 40, 50).image).save(tmp_path / "small.png")
    assert _run(*TINY, tmp_path / "small.png", "-o", tmp_path / "r.json", "--padding", "reflect") == 0
    assert "only one image" in capsys.readouterr().out
    assert Ranges.load(tmp_path / "r.json").windows == 1


def test_bad_requests(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("no image")
    output = tmp_path / "r.json"
    for argv, message in (
        ((*TINY, tmp_path / "empty", "-o", output), "got nothing, expected images"),
        ((*TINY, tmp_path / "bad", "-o", output), "not an image"),
        ((*TINY, scenes, "-o", tmp_path / "none" / "r.json"), "expected a file to write in a folder that exists"),
        ((*TINY, scenes, "-o", tmp_path), "expected a file to write"),
        ((*TINY, scenes, "-o", output, "--method", "median"), "--method: got 'median', expected one of max"),
        ((*TINY, scenes, "-o", output, "--percentile", "0.9999"), "expected 50 to 100"),
        ((*TINY, scenes, "-o", output, "--seed", "-1"), "--seed: got -1"),
        (("tests.models:nan_weights", *TINY[1:], scenes, "-o", output), "NaN"),
    ):
        assert _run(*argv) == 2, argv
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert message in errors[0]
        assert not output.exists()
        assert not list(tmp_path.glob(".*"))


def test_images_of_one_colour_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, colour in enumerate(((0, 0, 0), (124, 116, 104))):
        Image.new("RGB", (96, 64), colour).save(tmp_path / f"{index}.png")
    assert _run(*TINY, tmp_path, "-o", tmp_path / "r.json") == 2
    assert "got 2 image(s) of one colour, such as 0.png" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
    Image.fromarray(render(0, 64, 96).image).save(tmp_path / "2.png")
    assert _run(*TINY, tmp_path, "-o", tmp_path / "r.json") == 0
    assert "2 image(s) of one colour, such as 0.png" in capsys.readouterr().out


def test_camvid(shared_data: Path, tmp_path: Path) -> None:
    """Photographs and a trained checkpoint; the clipping values of outlier-prone tensors differ between methods."""
    model, photos = shared_data / "segformer-b0-camvid", shared_data / "camvid" / "val"
    if not (model.is_dir() and photos.is_dir()):
        pytest.skip("no CamVid and its SegFormer-B0 in the real data")
    found = {}
    for method in ("max", "entropy"):
        output = tmp_path / f"{method}.json"
        assert _run(model, photos, "-o", output, "--tile", 256, "--windows", 3, "--method", method) == 0
        found[method] = Ranges.load(output)
    assert found["max"].images == 3
    ratios = [found["entropy"].tensors[name].amax / tensor.amax for name, tensor in found["max"].tensors.items()]
    assert max(ratios) <= 1
    assert min(ratios) < 0.7
