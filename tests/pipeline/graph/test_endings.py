"""Endings of given networks: what is cut, that labels and probabilities stay, and what is left alone or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit, softmax

from engines.errors import DeployError, GateError
from engines.tiling.core import labels_of
from pipeline.checkpoints.onnx_source import OnnxSource
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.endings import Ending, require_same_labels
from pipeline.graph.onnx_graph import run_onnx

SIDE = 24
node = helper.make_node
Nodes = list[onnx.NodeProto]
NHWC, NCHW = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}


def _constants() -> dict[str, np.ndarray]:
    return {
        "axis0": np.int64([0]), "axis1": np.int64([1]), "flat": np.int64([1, -1, SIDE, SIDE]), "one": np.int64([1]),
        "twice": np.float32([1, 1, 2, 2]), "half": np.float32(0.3), "zero": np.float32(0), "hundred": np.float32(100),
        "begin": np.int64([2, 2]), "end": np.int64([SIDE - 2, SIDE - 2]), "axes": np.int64([2, 3]),
    }  # fmt: skip


def _file(path: Path, ending: Nodes, channels: int = 4, kind: int = TensorProto.FLOAT, opset: int = 18) -> Path:
    """A network whose logits ``x`` go through `ending`, which makes ``out``."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(channels, 3, 3, 3)).astype(np.float32), **_constants()}
    nodes = [node("Conv", ["image", "w"], ["x"], pads=[1] * 4), *ending]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def _picture() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)


def _original(path: Path) -> np.ndarray:
    """What the file itself says, in ONNX Runtime."""
    output: np.ndarray = onnxruntime.InferenceSession(str(path)).run(None, {"image": _picture()})[0]
    return output


def _loaded(path: Path) -> OnnxSource:
    source = load_source(str(path), (SIDE, SIDE), SourceOptions())
    assert isinstance(source, OnnxSource)
    return source


def _chain(*steps: tuple[str, dict[str, object]] | tuple[str, dict[str, object], Sequence[str]]) -> Nodes:
    """Nodes in a row from ``x`` to ``out``: the operator, its attributes, its further inputs."""
    made, last = [], "x"
    for index, (op, attributes, *more) in enumerate(steps):
        output = "out" if index == len(steps) - 1 else f"t{index}"
        made.append(node(op, [last, *(more[0] if more else ())], [output], **attributes))
        last = output
    return made


PROBABILITIES = {
    "softmax": _chain(("Softmax", {"axis": 1})),
    "softmax of axis -3": _chain(("Softmax", {"axis": -3})),
    "log softmax": _chain(("LogSoftmax", {"axis": 1})),
    "casts": _chain(("Identity", {}), ("Softmax", {"axis": 1}), ("Cast", {"to": 11}), ("Cast", {"to": 1})),
    "channels last and back": _chain(("Transpose", NHWC), ("Softmax", {"axis": -1}), ("Transpose", NCHW)),
    "nearest": _chain(
        ("Softmax", {"axis": 1}), ("Resize", {"mode": "nearest", "nearest_mode": "floor",
                                              "coordinate_transformation_mode": "asymmetric"}, ["", "twice"])),
    "linear": _chain(("Softmax", {"axis": 1}), ("Resize", {"mode": "linear"}, ["", "twice"])),
    "cropped": _chain(("Softmax", {"axis": 1}), ("Slice", {}, ["begin", "end", "axes"])),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBABILITIES)
def test_the_softmax_of_the_logits_is_what_the_network_says(name: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "net.onnx", PROBABILITIES[name])
    source, said = _loaded(path), _original(path)
    logits = run_onnx(source.graph, [_picture()])
    probabilities = np.exp(said) if name == "log softmax" else said
    np.testing.assert_allclose(softmax(logits.astype(np.float64), axis=1), probabilities, atol=2e-6)
    assert np.array_equal(logits.argmax(1), said.argmax(1))
    assert len(source.remarks) == 1
    assert source.graph.history[0].rule == source.remarks[0]
    assert source.remarks[0].startswith(f"ending: {'LogSoftmax' if name == 'log softmax' else 'Softmax'}")
    if name not in ("linear",):
        assert not {"Softmax", "LogSoftmax", "Log"} & {each.op_type for each in source.graph.model.graph}


def test_of_opset_11_a_softmax_of_axis_1_sums_over_the_picture_and_its_labels_stay(tmp_path: Path) -> None:
    path = _file(tmp_path / "net.onnx", _chain(("Softmax", {"axis": 1})), opset=11)
    source = _loaded(path)
    assert "Softmax cut" in source.remarks[0]
    assert np.array_equal(source.logits([_picture()]).argmax(1), _original(path).argmax(1))


@pytest.mark.parametrize(
    ("axis", "opset"), [(2, 18), (3, 18), (-1, 11), (2, 11)], ids=["rows", "columns", "columns 11", "both 11"]
)
def test_a_softmax_over_places_is_the_networks_own(axis: int, opset: int, tmp_path: Path) -> None:
    path = _file(tmp_path / "net.onnx", _chain(("Softmax", {"axis": axis})), opset=opset)
    source = _loaded(path)
    assert source.remarks == ()
    np.testing.assert_allclose(source.logits([_picture()]), _original(path), rtol=1e-5)


@pytest.mark.parametrize(
    "more", [(), (("Squeeze", {}, ["axis1"]),), (("Resize", {"mode": "linear"}, ["", "twice"]),)], ids=str
)
def test_one_sigmoid_is_a_network_of_two_classes(more, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = _file(tmp_path / "net.onnx", _chain(("Sigmoid", {}), *more), channels=1)
    source, said = _loaded(path), _original(path)
    assert (source.spec.channels, source.spec.classes, source.spec.threshold) == (1, ("background", "foreground"), 0.5)
    logits = source.logits([_picture()])
    said = said.reshape(logits.shape)
    np.testing.assert_allclose(expit(logits), said, atol=2e-6)
    for threshold in (0.5, 0.2):
        clear = np.abs(said[:, 0] - threshold) > 1e-6
        assert np.array_equal(labels_of(logits, threshold)[clear], (said[:, 0] > threshold)[clear])


def test_saturated_sigmoids_are_compared_before_they_saturate(tmp_path: Path) -> None:
    path = _file(tmp_path / "net.onnx", _chain(("Mul", {}, ["hundred"]), ("Sigmoid", {})))
    source, said = _loaded(path), _original(path)
    ranked = np.sort(said, axis=1)
    ties = ranked[:, -1] == ranked[:, -2]
    assert ties.mean() > 0.1
    labels = source.logits([_picture()]).argmax(1)
    assert np.array_equal(labels[~ties], said.argmax(1)[~ties])
    assert (
        "its 4 channels compete: the largest wins with its share of a softmax, none is background" in source.remarks[0]
    )


LABELS = {
    "int64": (_chain(("ArgMax", {"axis": 1})), TensorProto.INT64),
    "float": (_chain(("ArgMax", {"axis": 1}), ("Cast", {"to": 1})), TensorProto.FLOAT),
    "uint8 without an axis": (_chain(("ArgMax", {"axis": 1, "keepdims": 0}), ("Cast", {"to": 2})), TensorProto.UINT8),
    "squeezed": (_chain(("ArgMax", {"axis": 1}), ("Squeeze", {}, ["axis1"]), ("Cast", {"to": 6})), TensorProto.INT32),
    "flat": (
        _chain(("ArgMax", {"axis": 1}), ("Squeeze", {}, ["axis1"]), ("Squeeze", {}, ["axis0"])), TensorProto.INT64),
    "put back": (
        _chain(("ArgMax", {"axis": 1, "keepdims": 0}), ("Unsqueeze", {}, ["axis1"]), ("Cast", {"to": 1})),
        TensorProto.FLOAT),
    "channels last": (_chain(("Transpose", NHWC), ("ArgMax", {"axis": -1})), TensorProto.INT64),
    "moved": (_chain(("ArgMax", {"axis": 1}), ("Transpose", NHWC), ("Cast", {"to": 1})), TensorProto.FLOAT),
    "of a softmax": (_chain(("Softmax", {"axis": 1}), ("ArgMax", {"axis": 1})), TensorProto.INT64),
    "of resized probabilities": (
        _chain(("Softmax", {"axis": 1}), ("Resize", {"mode": "linear"}, ["", "twice"]), ("ArgMax", {"axis": 1})),
        TensorProto.INT64),
    "largest of TopK": (
        [node("TopK", ["x", "one"], ["values", "out"], axis=1)], TensorProto.INT64),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_the_largest_logit_is_the_label_that_the_network_says(name: str, tmp_path: Path) -> None:
    ending, kind = LABELS[name]
    path = _file(tmp_path / "net.onnx", ending, kind=kind)
    source = _loaded(path)
    logits = source.logits([_picture()])
    assert source.spec.channels == logits.shape[1] == 4
    assert np.array_equal(logits.argmax(1).reshape(-1), _original(path).astype(int).reshape(-1))
    assert source.remarks[0].startswith("ending: TopK cut" if "TopK" in name else "ending: ArgMax cut")
    assert source.spec.logits_stride == 1


@pytest.mark.parametrize(
    ("ending", "threshold"),
    [
        (_chain(("Sigmoid", {}), ("Greater", {}, ["half"]), ("Cast", {"to": 1})), 0.3),
        (_chain(("Sigmoid", {}), ("GreaterOrEqual", {}, ["half"]), ("Cast", {"to": 2})), 0.3),
        (_chain(("Greater", {}, ["zero"]), ("Cast", {"to": 1})), 0.5),
    ],
)
def test_a_comparison_in_the_network_is_its_threshold(ending: Nodes, threshold: float, tmp_path: Path) -> None:
    kind = TensorProto.UINT8 if "GreaterOrEqual" in {each.op_type for each in ending} else TensorProto.FLOAT
    path = _file(tmp_path / "net.onnx", ending, channels=1, kind=kind)
    source, said = _loaded(path), _original(path)
    assert source.spec.threshold == pytest.approx(threshold)
    labels = labels_of(source.logits([_picture()]), source.spec.threshold)
    assert np.array_equal(labels, said[:, 0])
    assert 0.05 < labels.mean() < 0.95


@pytest.mark.parametrize(
    ("ending", "op"),
    [
        (
            _chain(("ArgMax", {"axis": 1}), ("Cast", {"to": 1}), ("Resize", {"mode": "nearest"}, ["", "twice"])),
            "ArgMax",
        ),
        (_chain(("ArgMax", {"axis": 1}), ("Cast", {"to": 1}), ("Mul", {}, ["hundred"])), "ArgMax"),
        (_chain(("ArgMax", {"axis": 2}), ("Cast", {"to": 1})), "ArgMax"),
        (_chain(("ArgMax", {"axis": 1}), ("Cast", {"to": 9}), ("Cast", {"to": 1})), "ArgMax"),
        (_chain(("Greater", {}, ["half"]), ("Cast", {"to": 1})), "Greater"),
        ([node("TopK", ["x", "one"], ["out", "places"], axis=1)], "TopK"),
    ],
    ids=["resized", "scaled", "over rows", "as a bool", "of several channels", "the values"],
)
def test_labels_never_pass_for_logits(ending: Nodes, op: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "net.onnx", ending)
    with pytest.raises(DeployError, match=rf"ends in labels \({op}.*expected logits or probabilities") as refused:
        _loaded(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "ending", [_chain(("Identity", {})), _chain(("Relu", {})), _chain(("Mul", {}, ["hundred"]))], ids=str
)
def test_logits_are_left_alone(ending: Nodes, tmp_path: Path) -> None:
    path = _file(tmp_path / "net.onnx", ending)
    source = _loaded(path)
    assert source.remarks == ()
    said = _original(path)
    np.testing.assert_allclose(source.logits([_picture()]), said, atol=1e-6 * np.abs(said).max())


@pytest.mark.parametrize(
    ("ending", "change"),
    [
        (Ending("", labels=True), lambda logits: logits.argmax(1)),
        (Ending(""), lambda logits: softmax(logits, axis=1)),
    ],
)
def test_logits_that_do_not_lead_to_the_ending_are_noticed(
    ending: Ending, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    logits = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    require_same_labels(ending, logits, change(logits))
    with pytest.raises(GateError, match="labels of its logits are not those of its own ending"):
        require_same_labels(ending, logits, change(logits[:, ::-1]))
