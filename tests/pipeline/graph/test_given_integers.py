"""Networks that come quantised: kept as they are, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image

import deploy
from engines.errors import DeployError
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.given import import_onnx, read_onnx
from pipeline.graph.onnx_graph import run_onnx

SIDE = 32
WINDOW = (SIDE, SIDE)
node = helper.make_node
RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((1, 3, *WINDOW), dtype=np.float32)


def _constant(name: str, value: object, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, kind), name)


SCALES = {"sx": 0.03, "sa": 0.04, "sb": 0.05, "so": 0.06}
ZEROS = {"zx": 128, "za": 3, "zb": 120, "zo": 131}


def _model(nodes: list, more: list, path: Path, opset: int = 13, output: str = "out") -> Path:
    weights = [*(_constant(*each) for each in SCALES.items()), *(_constant(*e, np.uint8) for e in ZEROS.items()), *more]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("image", T.FLOAT, [1, 3, *WINDOW])],
        [helper.make_tensor_value_info(output, T.FLOAT, None)], weights,
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def _own(path: Path) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(path).run(None, {"image": IMAGE})[0]
    return found


def _operators(path: Path, per_channel: bool) -> Path:
    """What ONNX Runtime's quantiser writes in its format QOperator."""
    q = "com.microsoft"
    scale = [0.01, 0.02, 0.015, 0.008] if per_channel else 0.01
    more = [
        _constant("w", RNG.integers(-127, 128, (4, 3, 3, 3)), np.int8), _constant("sw", scale),
        _constant("zw", np.zeros(np.shape(scale)), np.int8), _constant("bias", RNG.integers(-900, 900, 4), np.int32),
        _constant("m", RNG.integers(-127, 128, (SIDE, SIDE)), np.int8), _constant("sm", 0.004),
        _constant("zm", 0, np.int8),
    ]  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["image", "sx", "zx"], ["x"]),
        node("QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sa", "za", "bias"], ["a"], pads=[1] * 4),
        node("MaxPool", ["a"], ["p"], kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1]),
        node("QLinearSigmoid", ["p", "sa", "za", "sb", "zb"], ["s"], domain=q),
        node("QLinearMul", ["a", "sa", "za", "s", "sb", "zb", "so", "zo"], ["e"], domain=q),
        node("QLinearAdd", ["e", "so", "zo", "a", "sa", "za", "so", "zo"], ["f"], domain=q),
        node("QLinearLeakyRelu", ["f", "so", "zo", "so", "zo"], ["g"], domain=q, alpha=0.1),
        node("QLinearMatMul", ["g", "so", "zo", "m", "sm", "zm", "so", "zo"], ["h"]),
        node("QLinearConcat", ["so", "zo", "h", "so", "zo", "a", "sa", "za"], ["y"], domain=q, axis=1),
        node("DequantizeLinear", ["y", "so", "zo"], ["out"]),
    ]  # fmt: skip
    return _model(nodes, more, path)


@pytest.mark.parametrize("per_channel", [False, True])
def test_integer_operators_become_q_dq(tmp_path: Path, per_channel: bool) -> None:
    path = _operators(tmp_path / "m.onnx", per_channel)
    given = read_onnx(path, WINDOW)
    ops = {each.op_type for each in given.graph.model.graph}
    assert {"Conv", "MatMul", "MaxPool", "QuantizeLinear", "DequantizeLinear"} <= ops
    assert not [op for op in ops if op.startswith("QLinear")]
    got, expected = run_onnx(given.graph, [IMAGE]), _own(path)
    # Sums of many roundings: hardly any differ, and those by single steps.
    steps = np.abs(got - expected) / SCALES["so"]
    assert (steps > 0.5).mean() < 0.02
    assert steps.max() < 4


def _q_dq(path: Path) -> Path:
    """The form that every backend keeps."""
    more = [
        _constant("w", RNG.integers(-127, 128, (32, 3, 3, 3)), np.int8), _constant("sw", 0.01),
        _constant("zw", 0, np.int8), _constant("v", RNG.integers(-127, 128, (4, 32, 1, 1)), np.int8),
    ]  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["image", "sx", "zx"], ["xq"]), node("DequantizeLinear", ["xq", "sx", "zx"], ["x"]),
        node("DequantizeLinear", ["w", "sw", "zw"], ["wd"]), node("Conv", ["x", "wd"], ["a"], pads=[1] * 4),
        node("QuantizeLinear", ["a", "sb", "zb"], ["aq"]), node("DequantizeLinear", ["aq", "sb", "zb"], ["ad"]),
        node("DequantizeLinear", ["v", "sw", "zw"], ["vd"]), node("Conv", ["ad", "vd"], ["out"]),
    ]  # fmt: skip
    return _model(nodes, more, path)


@pytest.mark.parametrize("make", [_q_dq, lambda path: _operators(path, True)], ids=["Q/DQ", "operators"])
def test_it_is_built_as_the_int8_that_it_is(tmp_path: Path, make, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path / "m.onnx")
    argv = ["build-engine", str(path), "-o", str(tmp_path / "b"), "--tile", str(SIDE), "--backend", "openvino"]
    assert deploy.main([*argv, "--threads", "1"]) == 0
    assert "int8 already" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["precision"] == "int8"
    kept = onnx.load(tmp_path / "b" / "model.onnx")
    assert sum(each.op_type == "QuantizeLinear" for each in kept.graph.node) >= 2
    assert json.loads((tmp_path / "b" / "report.json").read_text())["gate"]["norm"] == "rms"  # int8's gate


def test_what_cannot_be_asked_of_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(_q_dq(tmp_path / "m.onnx")), str(tmp_path / "b")
    build = ["build-engine", path, "-o", out, "--tile", str(SIDE)]
    (tmp_path / "photos").mkdir()
    Image.effect_noise(WINDOW, 60).convert("RGB").save(tmp_path / "photos" / "a.png")
    photos = str(tmp_path / "photos")
    for argv, said in (
        ([*build, "--precision", "fp16"], "--precision fp16: the network is int8 already (Q/DQ), expected floats"),
        ([*build, "--precision", "auto", "--calib", photos], "--precision auto: the network is int8 already"),
        ([*build, "--precision", "int8", "--calib", photos], "--calib: the network is int8 already"),
        (["calibrate", path, photos, "-o", str(tmp_path / "r.json"), "--tile", str(SIDE)], "--calib: the network is"),
        (["compare", path, "--data", photos, "-o", out, "--tile", str(SIDE)], "the network is int8 already"),
    ):
        assert deploy.main(argv) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert not Path(out).exists()


def test_weights_that_alone_are_integers_are_floats(tmp_path: Path) -> None:
    """Quantised to make the file small: computed with in floats, so that every precision can be asked for."""
    stored = RNG.integers(-127, 128, (4, 3, 3, 3))
    more = [
        _constant("w", stored, np.int8),
        _constant("sw", [0.01, 0.02, 0.015, 0.008]),
        _constant("zw", [0] * 4, np.int8),
    ]
    nodes = [node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0), node("Conv", ["image", "wd"], ["out"])]
    path = _model(nodes, more, tmp_path / "m.onnx")
    source = load_source(str(path), WINDOW, SourceOptions())
    assert not source.quantised
    assert [each.op_type for each in source.export()[0].model.graph] == ["Conv"]
    np.testing.assert_allclose(source.logits([IMAGE]), _own(path), atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("DynamicQuantizeLinear", ["image"], ["x", "s", "z"]),
          node("DequantizeLinear", ["x", "s", "z"], ["out"])],
         "quantised dynamically (DynamicQuantizeLinear)"),
        ([node("QuantizeLinear", ["image", "sx", "zx"], ["x"]),
          node("QLinearReduceMean", ["x", "sx", "zx", "so", "zo"], ["y"], domain="com.microsoft", axes=[1]),
          node("DequantizeLinear", ["y", "so", "zo"], ["out"])], "got QLinearReduceMean, which is not converted"),
    ],
)  # fmt: skip
def test_what_no_engine_keeps_is_refused_by_name(tmp_path: Path, nodes: list, said: str) -> None:
    with pytest.raises(DeployError) as error:
        import_onnx(_model(nodes, [], tmp_path / "m.onnx"), WINDOW)
    assert said in str(error.value)
    assert "give the float network with --precision int8" in str(error.value)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weight_type", [QuantType.QInt8, QuantType.QUInt8])
def test_what_is_quantised_dynamically_is_the_float_network_that_it_stands_for(
    tmp_path: Path, per_channel: bool, weight_type: QuantType
) -> None:
    """ONNX Runtime's own files of a convolution and a product: nearer to the float network than they are themselves."""
    weights = [_constant("w", RNG.normal(size=(8, 3, 3, 3)) * 0.3), _constant("b", RNG.normal(size=8)),
               _constant("v", RNG.normal(size=(8, 4)) * 0.3)]  # fmt: skip
    nodes = [node("Conv", ["image", "w", "b"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["r"]),
             node("Transpose", ["r"], ["t"], perm=[0, 2, 3, 1]), node("MatMul", ["t", "v"], ["m"]),
             node("Transpose", ["m"], ["out"], perm=[0, 3, 1, 2])]  # fmt: skip
    path, rounded = _model(nodes, weights, tmp_path / "m.onnx"), tmp_path / "dynamic.onnx"
    quantize_dynamic(path, rounded, per_channel=per_channel, weight_type=weight_type)
    assert {"ConvInteger", "MatMulInteger"} <= {each.op_type for each in onnx.load(rounded).graph.node}
    source = load_source(str(rounded), WINDOW, SourceOptions())
    expected, got = _own(path), source.logits([IMAGE])
    own = float(np.abs(_own(rounded) - expected).max())
    assert float(np.abs(got - expected).max()) < own < 0.1 * float(np.abs(expected).max())
    assert not source.quantised
    assert any("quantised dynamically (ConvInteger, DynamicQuantizeLinear, MatMulInteger)" in r for r in source.remarks)
