"""`evaluate`: scores over a whole set, against scikit-learn on masks that were made another way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, jaccard_score

import deploy
from calib.data.datasets import LabelOptions, open_dataset
from calib.data.label_map import LabelMap, read_label_map
from engines.bundle import open_bundle
from engines.errors import DeployError, GateError
from engines.files import file_sha256, write_json
from engines.images.read import read_image
from engines.images.resize import resize_labels
from engines.segmenter import Segmenter, open_segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from engines.views.views import ImageViews
from pipeline.build import build_bundle
from pipeline.checkpoints.sources import SourceOptions
from pipeline.evaluation.evaluate import Evaluation, evaluate, score
from pipeline.evaluation.metrics import Scores
from pipeline.request import BuildRequest
from tests.without import deploy_without

SIZES = {"a": (64, 96), "b": (150, 200), "c": (40, 50)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of several sizes with random labels 0..4, class 4 only in one corner, and some to ignore."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        for folder in ("images", "labels"):
            (root / folder).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / "images" / f"{name}.png")
        labels = rng.integers(0, 4, size, np.uint8)
        labels[:5, :5] = 4
        labels[rng.random(size) < 0.2] = 255
        Image.fromarray(labels).save(root / "labels" / f"{name}.png")
    return root


def _evaluate(folder: Path, data: Path, label_map: LabelMap | None = None, limit: int | None = None) -> Evaluation:
    with open_segmenter(folder) as (segmenter, manifest):
        dataset = open_dataset(data, manifest.spec, label_map)
        return evaluate(segmenter, manifest, folder, dataset.limited(limit))


def _truth(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def _assert_equal(scores: Scores, truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray], tol: float) -> None:
    """`scores` are scikit-learn's, where every class occurs.  truth: 255 is left out."""
    true = np.concatenate([each.ravel() for each in truth])
    called = np.concatenate([each.ravel() for each in predicted])[true != 255]
    true = true[true != 255]
    classes = range(len(scores.classes))
    ious = jaccard_score(true, called, labels=classes, average=None)
    assert [each.iou for each in scores.classes] == [pytest.approx(iou, abs=tol) for iou in ious]
    assert scores.miou == pytest.approx(np.mean(ious), abs=tol)
    assert scores.aacc == pytest.approx(accuracy_score(true, called), abs=tol)
    assert scores.macc == pytest.approx(balanced_accuracy_score(true, called), abs=tol)


def test_scores_are_scikit_learns_on_the_masks_that_run_writes(tiny_bundle: Path, tree: Path, tmp_path: Path) -> None:
    assert deploy.main(["run", str(tiny_bundle), str(tree / "images"), "-o", str(tmp_path)]) == 0
    masks, truth = ([_truth(folder / f"{name}.png") for name in SIZES] for folder in (tmp_path, tree / "labels"))
    _assert_equal(_evaluate(tiny_bundle, tree).scores, truth, masks, 1e-12)


def test_a_label_map_resizes_the_image_and_brings_the_labels_back(tiny_bundle: Path, tree: Path) -> None:
    """Against Pillow: bilinear to 70x110, labels nearest to the size of the label file, classes 5 -> 3."""
    targets = [2, 0, 0, 1, 1]
    label_map = LabelMap.from_json(
        {"classes": ["x", "y", "z"], "prediction": targets, "label": {"3": None, "4": 1}, "image_size": [70, 110]}
    )
    truth, predicted = [], []
    with open_segmenter(tiny_bundle) as (segmenter, _):
        for name in SIZES:
            with Image.open(tree / "images" / f"{name}.png") as image:
                large = np.asarray(image.resize((110, 70), Image.Resampling.BILINEAR))
            labels = Image.fromarray(segmenter.segment(large).labels)
            size = SIZES[name][::-1]
            predicted.append(np.array(targets, np.uint8)[np.asarray(labels.resize(size, Image.Resampling.NEAREST))])
            values = _truth(tree / "labels" / f"{name}.png")
            truth.append(np.where(values == 3, 255, np.where(values == 4, 1, values)))
    result = _evaluate(tiny_bundle, tree, label_map)
    assert [each.name for each in result.scores.classes] == ["x", "y", "z"]
    _assert_equal(result.scores, truth, predicted, 1e-12)
    assert result.dataset["label_map"] == label_map.to_json()


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (50, 33), (100, 150), (13, 41)])
def test_labels_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (25, 31), np.uint8)
    expected = np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    assert np.array_equal(resize_labels(labels, size), expected)


def test_the_result_names_what_it_was_measured_with(tiny_bundle: Path, tree: Path, tmp_path: Path) -> None:
    result = _evaluate(tiny_bundle, tree, limit=2)
    write_json(tmp_path / "evaluate.json", result.to_json())
    body = json.loads((tmp_path / "evaluate.json").read_text())
    manifest = open_bundle(tiny_bundle).manifest
    assert body["bundle"]["files"]["manifest.json"] == file_sha256(tiny_bundle / "manifest.json")
    assert body["bundle"]["files"]["engine.bin"] == manifest.files["engine.bin"]
    assert (body["bundle"]["device"], body["versions"]["sdk"]) == (manifest.device, manifest.sdk)
    assert body["dataset"]["sha256"] == open_dataset(tree).limited(2).digest
    assert (body["dataset"]["images"], body["timing"]["images"]) == (2, 2)
    assert body["timing"]["windows"] == 1 + 9  # (64, 96) is one window, (150, 200) three by three
    for part in ("gather_ms", "engine_ms", "stitch_ms", "frame_ms"):
        assert 0 < body["timing"][part]["p50"] <= body["timing"][part]["p95"]
    assert "p50 (p95)" in str(result)
    assert f"{100 * body['miou']:.2f}" in str(result)


def test_the_score_is_that_of_the_views(
    tiny_bundle: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(tiny_bundle), str(tree), "-o", str(tmp_path), "--limit", "2", "--resize", "short=80"]
    assert deploy.main([*words, "--tta", "--scales", "1,1.5", "--tta-merge", "max"]) == 0
    assert "images resized to short=80, max of scales 1,1.5 and their mirror images" in capsys.readouterr().out
    body = json.loads((tmp_path / "evaluate.json").read_text())
    assert body["views"] == {"resize": "short=80", "tta": {"scales": [1.0, 1.5], "flip": True, "merge": "max"}}
    wanted = ImageViews.from_json(body["views"])
    with open_segmenter(tiny_bundle, views=lambda manifest: wanted) as (segmenter, manifest):
        dataset = open_dataset(tree, manifest.spec).limited(2)
        scores = score(lambda image: segmenter.segment(image).labels, dataset, manifest.spec.classes)
    assert body["miou"] == pytest.approx(scores.miou, abs=1e-12)


def test_colours_score_as_the_numbers_do(
    tiny_bundle: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same labels, drawn in the model's palette; without the option they are refused, and the option is named."""
    coloured = tmp_path / "coloured"
    shutil.copytree(tree, coloured)
    spec = open_bundle(tiny_bundle).manifest.spec
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(spec.palette)] = spec.palette
    for path in (coloured / "labels").iterdir():
        Image.fromarray(palette[np.asarray(Image.open(path))]).save(path)
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(spec.classes, spec.palette, strict=True)]
    (tmp_path / "palette.txt").write_text("\n".join([*lines, "ignore 0 0 0"]))

    def scored(dataset: Path, *more: str) -> dict[str, Any]:
        capsys.readouterr()
        assert deploy.main(["evaluate", str(tiny_bundle), str(dataset), "--json", *more]) == 0
        body = json.loads(capsys.readouterr().out)
        return {key: body[key] for key in ("miou", "aacc", "macc", "classes")}

    wanted = scored(tree)
    assert scored(coloured, "--label-colors", "bundle") == wanted
    assert scored(coloured, "--label-colors", str(tmp_path / "palette.txt")) == wanted
    assert deploy.main(["evaluate", str(tiny_bundle), str(coloured)]) == 2
    assert "say for which with --label-colors" in capsys.readouterr().err
    (tmp_path / "palette.txt").write_text("\n".join(lines))
    assert deploy.main(["evaluate", str(tiny_bundle), str(coloured), "--label-colors", f"{tmp_path}/palette.txt"]) == 2
    assert "got the colour 0,0,0 in " in capsys.readouterr().err


def test_fail_under_is_a_gate(tiny_bundle: Path, tree: Path) -> None:
    result = _evaluate(tiny_bundle, tree)
    result.require(None)
    result.require(result.scores.miou)
    with pytest.raises(GateError, match=r"mIoU, expected at least 99\.5 %") as error:
        result.require(0.995)
    assert error.value.exit_code == 3


def test_evaluate_imports_neither_torch_nor_onnx(tiny_bundle: Path, tree: Path, tmp_path: Path) -> None:
    """On a device without them: importing either raises, and the score is still written."""
    packages = {"torch", "onnx", "onnxruntime", "onnxsim", "scipy", "sklearn"}
    argv = ["evaluate", str(tiny_bundle), str(tree), "-o", str(tmp_path / "out"), "--label-map", "cityscapes_to_camvid"]
    done = deploy_without(packages, argv)
    assert done.returncode == 2, done.stderr  # a model of five other classes
    assert "'road' in \"prediction\", expected a class of the model" in done.stderr
    done = deploy_without(packages, argv[:-2])
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluate.json"]


class _NaN:
    def run(self, windows: np.ndarray) -> np.ndarray:
        return np.full((1, 5, 8, 8), np.nan, np.float32)


def test_an_engine_that_answers_nan_is_an_error_and_no_score(tree: Path) -> None:
    names = tuple("abcde")
    spec = ModelSpec("test", "", names, ((0, 0, 0),) * 5)
    segmenter = Segmenter.on_host(_NaN(), spec, Tiling(32, 32, 24, 24))
    with pytest.raises(DeployError, match="NaN"):
        score(lambda image: segmenter.segment(image).labels, open_dataset(tree, spec), names)


def test_a_set_with_nothing_but_ignored_pixels_has_no_score(tree: Path) -> None:
    spec = ModelSpec("test", "", tuple("abcde"), ((0, 0, 0),) * 5)
    dataset = open_dataset(tree, spec, options=LabelOptions(ignore=(0, 1, 2, 3, 4)))
    with pytest.raises(DeployError, match="no labelled pixel"):
        score(lambda image: np.zeros(image.shape[:2], np.uint8), dataset, spec.classes)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="cannot be written"):
        write_json(tmp_path / "missing" / "evaluate.json", {})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "evaluate.json", {"miou": float("nan")})
    assert not list(tmp_path.iterdir())


def _normalised(image: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """(1, 3, *window) float32: ImageNet's mean and std, then zeros below and to the right."""
    x = ((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
    padding = ((0, 0), (0, window[0] - image.shape[0]), (0, window[1] - image.shape[1]))
    return np.pad(x, padding)[None].astype(np.float32)


def _camvid(shared_data: Path, count: int) -> tuple[Path, list[str]]:
    """The val split, and the names that --limit picks from it."""
    root = shared_data / "camvid" / "val"
    names = sorted(path.stem for path in (root / "images").iterdir())
    return root, [names[index * len(names) // count] for index in range(count)]


def test_camvid_scores_are_those_of_transformers(shared_data: Path, tmp_path: Path) -> None:
    """Real images, labels and weights; a window of 512 holds an image of 360x480 and its padding."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, count = shared_data / "segformer-b0-camvid", 6
    request = BuildRequest(str(folder), tmp_path / "b", Tiling(512, 512, 384, 384), backend="openvino")
    build_bundle(request, lambda step, text: None)
    root, names = _camvid(shared_data, count)
    result = _evaluate(tmp_path / "b", root, limit=count)
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    truth, predicted = [], []
    for name in names:
        x = torch.from_numpy(_normalised(read_image(root / "images" / f"{name}.jpg"), (512, 512)))
        with torch.no_grad():
            logits = torch.nn.functional.interpolate(model(x).logits, (512, 512), mode="bilinear", align_corners=False)
        predicted.append(logits[0, :, :360, :480].argmax(0).numpy())
        values = _truth(root / "labels" / f"{name}.png")
        truth.append(np.where(values == 11, 255, values))
    _assert_equal(result.scores, truth, predicted, 1e-4)
    assert result.scores.miou > 0.4
    assert result.scores.classes[3].name == "road"


@pytest.mark.slow
def test_a_cityscapes_network_on_camvid_through_the_label_map(shared_data: Path, tmp_path: Path) -> None:
    """Against ONNX Runtime, Pillow and the recipe of the data's README; its 71.3 mIoU is over 233 other images."""
    ort = pytest.importorskip("onnxruntime")
    path, count = shared_data / "onnx_cityscapes" / "fddwnet_cityscapes.onnx", 4
    options = SourceOptions(classes="cityscapes")
    request = BuildRequest(str(path), tmp_path / "b", Tiling(736, 960, 736, 960), backend="openvino", options=options)
    build_bundle(request, lambda step, text: None)
    root, names = _camvid(shared_data, count)
    result = _evaluate(tmp_path / "b", root, read_label_map("cityscapes_to_camvid"), limit=count)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    table = np.array([3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10], np.uint8)
    truth, predicted = [], []
    for name in names:
        with Image.open(root / "images" / f"{name}.jpg") as image:
            large = np.asarray(image.resize((960, 720), Image.Resampling.BILINEAR))
        logits = session.run(None, {"image": _normalised(large, (736, 960))})[0][0, :, :720]
        labels = Image.fromarray(table[logits.argmax(0)])
        predicted.append(np.asarray(labels.resize((480, 360), Image.Resampling.NEAREST)))
        values = _truth(root / "labels" / f"{name}.png")
        truth.append(np.where(values == 11, 255, values))
    _assert_equal(result.scores, truth, predicted, 1e-4)
    assert result.scores.aacc > 0.9
