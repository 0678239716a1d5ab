"""Given networks that end in probabilities or labels, from the command line: masks are ONNX Runtime's of their file."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.metrics import jaccard_score

import deploy
from calib.data.scenes import render
from engines.backends import get_backend
from engines.bundle import open_bundle

SIDE = 64
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
needs_bf16 = pytest.mark.skipif(
    get_backend("openvino").supports("bf16") is not None, reason="this CPU has no BF16 arithmetic"
)
node = helper.make_node
ENDINGS = {
    "sigmoid": (1, TensorProto.FLOAT, [node("Sigmoid", ["x"], ["out"])]),
    "softmax": (4, TensorProto.FLOAT, [node("Softmax", ["x"], ["out"], axis=1)]),
    "argmax": (4, TensorProto.INT64, [node("ArgMax", ["x"], ["out"], axis=1)]),
    "argmax_float": (
        4, TensorProto.FLOAT, [node("ArgMax", ["x"], ["a"], axis=1, keepdims=0), node("Cast", ["a"], ["out"], to=1)]),
    "saturated": (4, TensorProto.FLOAT, [node("Mul", ["x", "k"], ["m"]), node("Sigmoid", ["m"], ["out"])]),
}  # fmt: skip


def _network(path: Path, name: str) -> Path:
    """Three convolutions and an ending; the logits have the size of the window."""
    channels, kind, ending = ENDINGS[name]
    rng = np.random.default_rng(0)
    sizes = (3, 16, 32, channels)
    weights = {
        f"w{i}": (rng.normal(size=(b, a, 3, 3)) * (2 / (9 * a)) ** 0.5).astype(np.float32)
        for i, (a, b) in enumerate(pairwise(sizes))
    }
    weights["w2"] *= 3
    weights["k"] = np.float32(100)
    nodes, last = [], "image"
    for i in range(3):
        nodes.append(node("Conv", [last, f"w{i}"], [f"c{i}" if i < 2 else "x"], pads=[1] * 4))
        if i < 2:
            nodes.append(node("Relu", [f"c{i}"], [f"r{i}"]))
            last = f"r{i}"
    graph = helper.make_graph(
        [*nodes, *ending], "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", kind, None), ],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def _original(path: Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the file says of an image, and the logits inside it, both by ONNX Runtime."""
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    window = ((image.astype(np.float32) - MEAN) / STD).transpose(2, 0, 1)[None]
    said, logits = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": window})
    return said, logits[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        Image.fromarray(render(seed, SIDE, SIDE).image).save(folder / f"{seed}.png")
    return folder


def _run(*words: object) -> int:
    return deploy.main([str(word) for word in words])


def _build(name: str, precision: str, photos: Path, folder: Path, *more: object) -> Path:
    model = _network(folder / f"{name}.onnx", name)
    words = ["--tile", SIDE, "--threads", 1, "--backend", "openvino", "--precision", precision, "--calib", photos]
    assert _run("build-engine", model, "-o", folder / "bundle", *words, *more) == 0
    return folder / "bundle"


def _masks(bundle: Path, photos: Path, folder: Path, *more: object) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidence, 0..1, of the first photograph."""
    assert _run("run", bundle, photos / "0.png", "-o", folder / "out", "--confidence", *more) == 0
    confidence = np.asarray(Image.open(folder / "out" / "0.confidence.png")) / 255
    return np.asarray(Image.open(folder / "out" / "0.png")), confidence


PRECISIONS = ["fp32", pytest.param("bf16", marks=needs_bf16), "int8"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ENDINGS)
def test_masks_are_those_of_the_file(name: str, precision: str, photos: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    bundle = _build(name, precision, photos, tmp_path)
    assert f"ending: {ENDINGS[name][2][-1].op_type.replace('Cast', 'ArgMax')} cut" in capsys.readouterr().out
    labels, confidence = _masks(bundle, photos, tmp_path)
    said, logits = _original(tmp_path / f"{name}.onnx", np.asarray(Image.open(photos / "0.png")))
    if ENDINGS[name][0] == 1:
        expected, margin = said[0, 0] > 0.5, np.abs(logits[0])
        probability = np.where(labels == 1, said[0, 0], 1 - said[0, 0])
    else:
        ranked = np.sort(logits, axis=0)
        expected, margin = logits.argmax(0), ranked[-1] - ranked[-2]
        probability = np.exp(ranked[-1]) / np.exp(logits).sum(0)
    clear = margin > {"fp32": 1e-4, "bf16": 0.1, "int8": 0.4}[precision]
    assert clear.mean() > 0.4
    assert len(np.unique(labels)) == max(2, len(logits))
    assert np.array_equal(labels[clear], expected[clear])
    if "argmax" in name:
        assert np.array_equal(labels[clear], said.reshape(SIDE, SIDE)[clear])
    if name != "saturated" and precision == "fp32":
        np.testing.assert_allclose(confidence, probability, atol=0.003)


def test_a_threshold_is_recorded_and_another_may_be_given(photos: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "names.txt").write_text("water\n")
    bundle = _build("sigmoid", "fp32", photos, tmp_path, "--threshold", 0.3, "--classes", tmp_path / "names.txt")
    assert "one channel, water or background at a probability of 0.3" in capsys.readouterr().out
    spec = open_bundle(bundle).manifest.spec
    assert (spec.classes, spec.threshold, spec.channels) == (("background", "water"), 0.3, 1)
    said, _ = _original(tmp_path / "sigmoid.onnx", np.asarray(Image.open(photos / "0.png")))
    for threshold, words in ((0.3, ()), (0.8, ("--threshold", 0.8))):
        labels, confidence = _masks(bundle, photos, tmp_path, *words)
        clear = np.abs(said[0, 0] - threshold) > 1e-5
        assert np.array_equal(labels[clear], (said[0, 0] > threshold)[clear])
        np.testing.assert_allclose(confidence, np.where(labels == 1, said, 1 - said)[0, 0], atol=0.003)
    assert _run("inspect", bundle) == 0
    assert "one channel, water or background at a probability of 0.3" in capsys.readouterr().out
    assert _run("build-engine", bundle, "-o", tmp_path / "again", "--threshold", 0.8) == 2
    assert "--threshold: a bundle is rebuilt as it is" in capsys.readouterr().err
    assert _run("build-engine", bundle, "-o", tmp_path / "again", "--batch", 2) == 0


def test_it_is_scored_as_two_classes(photos: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    bundle = _build("sigmoid", "fp32", photos, tmp_path)
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    truths, masks = [], {0.5: [], 0.9: []}
    for seed in range(4):
        image = Image.open(photos / f"{seed}.png")
        image.save(data / "images" / f"{seed}.png")
        truth = np.random.default_rng(seed).integers(0, 2, (SIDE, SIDE), np.uint8)
        Image.fromarray(truth).save(data / "labels" / f"{seed}.png")
        truths.append(truth.ravel())
        said, _ = _original(tmp_path / "sigmoid.onnx", np.asarray(image))
        for threshold, found in masks.items():
            found.append((said > threshold).ravel())
    for threshold, words in ((0.5, ()), (0.9, ("--threshold", 0.9))):
        capsys.readouterr()
        assert _run("evaluate", bundle, data, "--json", *words) == 0
        result = json.loads(capsys.readouterr().out)
        expected = jaccard_score(np.concatenate(truths), np.concatenate(masks[threshold]), average=None)
        assert [each["name"] for each in result["classes"]] == ["background", "foreground"]
        assert result["bundle"]["threshold"] == threshold
        np.testing.assert_allclose([each["iou"] for each in result["classes"]], expected, atol=1e-3)
    words = ["--data", data, "--tile", SIDE, "--threads", 1, "--rounds", 1, "--backend", "openvino"]
    assert _run("compare", tmp_path / "sigmoid.onnx", *words, "--precisions", "fp32", "-o", tmp_path / "c") == 0
    row = json.loads((tmp_path / "c" / "compare.json").read_text())["rows"][-1]
    assert row["label_agreement"] > 0.999
    assert row["passed"]


@pytest.mark.parametrize("threshold", ["0", "1", "1.5", "-0.5", "nan", "half"])
@pytest.mark.parametrize("verb", ["run", "build-engine"])
def test_a_threshold_that_is_no_probability_is_a_wrong_command_line(verb: str, threshold: str, capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as stopped:
        _run(verb, "b", *(["x.png"] if verb == "run" else []), "-o", "o", f"--threshold={threshold}")
    assert stopped.value.code == 2
    assert "argument --threshold: " in capsys.readouterr().err


def test_a_threshold_is_refused_where_the_largest_channel_wins(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("build-engine", "demo", "--tile", 64), ("run", tiny_bundle, photos / "0.png")):
        assert _run(*words, "-o", tmp_path / "o", "--threshold", 0.4) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: --threshold 0.4: got a network with ")
        assert "\n" not in error
        assert not (tmp_path / "o").exists()
