"""INT8: Q/DQ as the ONNX text defines it, scales per channel, and a reason for everything that stays out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from calib.ranges.ranges import Ranges, TensorRange
from engines.errors import DeployError
from engines.proof.agreement import GATES, compare_logits
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.precision.bias import correct_bias
from pipeline.precision.extremes import tensors
from pipeline.precision.lower import lower, prepare_int8
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import NodePlan, PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.quantise import scale_from_amax
from pipeline.precision.smooth import smooth
from pipeline.request import Int8Options, LowerOptions
from tests.pipeline.precision.lowering import exported, graph_of, types
from tests.pipeline.precision.max_ranges import ranges_from_windows


def _ranges(**amax: float) -> Ranges:
    return Ranges({n: TensorRange(a, -a, a, a / 3) for n, a in amax.items()}, "max", 1, 1, 0, "", "")


def _conv(weight: np.ndarray, size: int = 8, **attributes: object) -> OnnxGraph:
    """A convolution, quantised or not, then the classifier (which never is)."""
    inputs = weight.shape[1] * int(str(attributes.get("group", 1)))
    nodes = [
        helper.make_node("Conv", ["image", "v"], ["x"]),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes),
        helper.make_node("Conv", ["y", "k"], ["logits"]),
    ]
    rng = np.random.default_rng(1)
    constants = {
        "v": rng.standard_normal((inputs, 3, 1, 1), np.float32), "w": weight, "b": np.zeros(len(weight), np.float32),
        "k": rng.standard_normal((4, len(weight), 1, 1), np.float32),
    }  # fmt: skip
    height, width = size - weight.shape[2] + 1, size - weight.shape[3] + 1
    return graph_of(nodes, constants, (1, 3, size, size), (1, 4, height, width))


def _constants(graph: OnnxGraph) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in graph.model.graph.initializers.items()}


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.1)


def _reason(graph: OnnxGraph, ranges: Ranges, output: str = "y", **options: object) -> str:
    plan = plan_int8(graph, ranges, options=Int8Options(**options))  # type: ignore[arg-type]
    return next(n.reason for n in plan.nodes if n.output == output and n.precision != "int8")


def test_qdq_is_what_the_onnx_text_says() -> None:
    """x' = saturate(round_half_even(x / s)) * s with the range of int8, written out in float64."""
    graph = _conv(_weights(16, 16, 1, 1))
    ranges = _ranges(x=1.27)
    lowered = lower_int8(graph, plan_int8(graph, ranges), ranges)
    x = np.random.default_rng(3).standard_normal((1, 3, 8, 8), np.float32)
    found = dict(tensors(lowered, x, {"x", "x__dq", "y", "w__dq"}))
    scale = float(np.float32(1.27 / 127))
    ratio = found["x"].astype(np.float64) / scale
    ties = np.abs(ratio - np.floor(ratio) - 0.5) < 1e-4  # float32 division may fall on either side
    expected = np.clip(np.round(ratio), -128, 127) * scale
    assert found["x"].min() < -1.28  # some values are clipped, on both sides
    assert found["x"].max() > 1.28
    np.testing.assert_allclose(found["x__dq"][~ties], expected[~ties], atol=1e-6)
    weight = _weights(16, 16, 1, 1)
    for channel in range(16):
        step = float(np.abs(weight[channel]).max()) / 127
        assert np.abs(found["w__dq"][channel] - weight[channel]).max() <= step / 2 * 1.001
    wanted = torch.nn.functional.conv2d(*map(torch.from_numpy, (found["x__dq"], found["w__dq"])))
    np.testing.assert_allclose(found["y"], wanted.numpy(), atol=1e-5)


def test_one_pair_per_tensor_and_weights_stored_as_int8_per_channel() -> None:
    graph, windows, _ = exported("tests.models:tiny", 64)
    ranges = ranges_from_windows(graph, windows)
    plan = plan_int8(graph, ranges)
    lowered = lower_int8(graph, plan, ranges)
    proto = ir.to_proto(lowered.model).graph
    nodes = proto.node
    quantised = [n.input[0] for n in nodes if n.op_type == "QuantizeLinear"]
    assert len(set(quantised)) == len(quantised)
    stored = {i.name: numpy_helper.to_array(i) for i in proto.initializer}
    by_output = {n.output[0]: n for n in nodes}
    count = 0
    for node in nodes:
        if plan.precision(node.output[0]) != "int8":
            assert not any(by_output[i].op_type == "DequantizeLinear" for i in node.input if i in by_output)
            continue
        count += 1
        activation, weight = by_output[node.input[0]], by_output[node.input[1]]
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        values, scale, zero = (stored[name] for name in weight.input)
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        assert axis == (0 if node.op_type == "Conv" else values.ndim - 1)
        assert values.dtype == zero.dtype == np.int8
        assert scale.shape == zero.shape == (values.shape[axis],)
        assert not zero.any()
        assert stored[activation.input[1]].shape == ()
    assert count == sum(n.precision == "int8" for n in plan.nodes) > 20
    biases = [n.input[2] for n in nodes if n.op_type == "Conv" and len(n.input) > 2]
    assert all(stored[name].dtype == np.float32 for name in biases)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_scales_follow_its_output_channels(transposed: int) -> None:
    weight = _weights(16, 32) * np.geomspace(0.01, 1, 32, dtype=np.float32)
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["x"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed),
        helper.make_node("Reshape", ["y", "square"], ["z"]),
        helper.make_node("Conv", ["z", "k"], ["logits"]),
    ]
    constants = {"flat": np.int64([12, 16]), "w": weight.T.copy() if transposed else weight, "k": _weights(4, 6, 1, 1)}
    graph = graph_of(nodes, constants | {"square": np.int64([1, 6, 8, 8])}, (1, 3, 8, 8), (1, 4, 8, 8))
    ranges = _ranges(x=3.0)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), np.float32)
    lowered = lower_int8(graph, plan_int8(graph, ranges), ranges)
    stored = _constants(lowered)
    np.testing.assert_allclose(stored["w__scale"], np.abs(weight).max(0) / 127, rtol=1e-6)
    np.testing.assert_allclose(run_onnx(lowered, [x]), run_onnx(graph, [x]), atol=0.02)


@pytest.mark.parametrize("stored", ["fp16", "bf16"])
def test_a_stored_scale_never_clips_what_was_measured(stored: str) -> None:
    """Rounded up, and by no more than one unit in the last place of the type."""
    amax = np.geomspace(1e-3, 1e3, 1000, dtype=np.float32)
    scale = scale_from_amax(amax, stored)
    assert (scale.astype(np.float64) * 127 >= amax * (1 - 1e-6)).all()
    unit = {"fp16": 2.0**-10, "bf16": 2.0**-7}[stored]
    assert (scale <= np.maximum(amax / 127 * (1 + unit), amax / 127 + 2.0**-24)).all()


def test_each_reason_to_decline() -> None:
    good = _conv(_weights(16, 16, 1, 1))
    assert _reason(good, _ranges(x=1.0), "logits") == "makes the logits"
    assert "left out as asked" in _reason(good, _ranges(x=1.0), skip=("y",))
    assert "no measured range for its input x" in _reason(good, _ranges(image=1.0))
    assert "12 input channels" in _reason(_conv(_weights(16, 12, 1, 1)), _ranges(x=1.0))
    assert "9 output channels" in _reason(_conv(_weights(9, 16, 1, 1)), _ranges(x=1.0))
    assert "8 -> 8 channels" in _reason(_conv(_weights(8, 8, 3, 3)), _ranges(x=1.0))
    assert "kernel (3, 1)" in _reason(_conv(_weights(32, 8, 3, 1)), _ranges(x=1.0))
    depthwise = _conv(_weights(32, 1, 3, 3), group=32)
    assert "depthwise over 32 channels" in _reason(depthwise, _ranges(x=1.0))
    asked = plan_int8(depthwise, _ranges(x=1.0), options=Int8Options(depthwise=True))
    assert asked.precision("y") == "int8"
    assert "grouped with 8 channels" in _reason(_conv(_weights(32, 8, 1, 1), group=4), _ranges(x=1.0))


def test_attention_products_normalisation_and_softmax_are_never_quantised() -> None:
    graph, windows, _ = exported("tests.models:tiny", 64)
    plan = plan_int8(graph, ranges_from_windows(graph, windows))
    ops = {node.outputs[0].name: node.op_type for node in graph.model.graph}
    products = [n for n in plan.nodes if "both operands are activations" in n.reason]
    assert len(products) == 2 * 4  # two in each of the four attentions
    assert {ops[n.output] for n in plan.nodes if n.precision == "int8"} == {"Conv", "MatMul"}


def test_ranges_of_another_model_are_refused() -> None:
    with pytest.raises(DeployError, match="none of them is one of this model's"):
        plan_int8(exported("tests.models:tiny", 64)[0], _ranges(something=1.0))


@pytest.mark.parametrize("rest", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("model", "side"), [("demo", 128), ("tests.models:tiny_setr", 64)])
def test_lowered_graphs_agree_with_fp32(model: str, side: int, rest: str) -> None:
    graph, windows, reference = exported(model, side)
    ranges = ranges_from_windows(graph, windows)
    result = lower(graph, "int8", windows, reference, GATES["int8"], lambda s, t: None, ranges, LowerOptions(rest=rest))
    onnx.checker.check_model(ir.to_proto(result.graph.model), full_check=True)
    got = compare_logits("int8", run_onnx(emulate(result.graph), list(windows)), "fp32", reference)
    assert got.mean_abs is not None
    assert got.mean_abs < 0.03 * float(np.abs(reference).max())
    assert got.labels > (0.98 if model == "demo" else 0.95)
    if rest != "fp32":
        half = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[rest]
        found = types(result.graph)
        scales = [n.inputs[1].name for n in result.graph.model.graph if n.op_type == "DequantizeLinear"]
        assert {found[name] for name in scales} == {half}
    assert {"plan"} <= set(result.report)


def _outlier(channels: int = 16) -> tuple[OnnxGraph, np.ndarray]:
    """LayerNorm with two loud channels -> Transpose -> Reshape -> Conv, and -> MatMul -> Add; joined by an Add."""
    rng = np.random.default_rng(0)
    gain = np.ones(channels, np.float32)
    gain[[2, 9]] = (40, 25)
    nodes = [
        helper.make_node("Conv", ["image", "v"], ["c"]),
        helper.make_node("Reshape", ["c", "flat"], ["f"]),
        helper.make_node("Transpose", ["f"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["tokens", "gain", "shift"], ["n"]),
        helper.make_node("Transpose", ["n"], ["nt"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["nt", "grid"], ["g"]),
        helper.make_node("Conv", ["g", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["n", "m"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["q"]),
        helper.make_node("Transpose", ["q"], ["qt"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["qt", "grid"], ["r"]),
        helper.make_node("Add", ["a", "r"], ["s"]),
        helper.make_node("Conv", ["s", "k"], ["logits"]),
    ]
    constants = {
        "v": rng.standard_normal((channels, 3, 1, 1), np.float32), "flat": np.int64([1, channels, 64]),
        "gain": gain, "shift": rng.standard_normal(channels, np.float32), "grid": np.int64([1, channels, 8, 8]),
        "w": _weights(channels, channels, 3, 3), "m": _weights(channels, channels),
        "b": np.zeros(channels, np.float32), "k": _weights(4, channels, 1, 1),
    }  # fmt: skip
    return graph_of(nodes, constants, (1, 3, 8, 8), (1, 4, 8, 8)), rng.standard_normal((1, 3, 8, 8), np.float32)


def test_smoothing_is_exact_algebra_and_helps() -> None:
    """In float64 by ONNX's reference evaluator; with outliers, quantisation loses less afterwards."""
    from onnx.reference import ReferenceEvaluator

    graph, x = _outlier()
    ranges = ranges_from_windows(graph, [x])
    plan = plan_int8(graph, ranges)
    smoothed, moved, report = smooth(graph, plan, ranges)
    assert [r.declined for r in report] == [""]
    assert report[0].after < report[0].before / 2
    exact = [
        ReferenceEvaluator(_double(ir.to_proto(g.model))).run(None, {"image": x.astype(np.float64)})[0]
        for g in (graph, smoothed)
    ]
    assert exact[0].dtype == np.float64
    np.testing.assert_allclose(exact[1], exact[0], rtol=0, atol=2e-6 * np.abs(exact[0]).max())  # float32 constants
    measured = ranges_from_windows(smoothed, [x])
    for name in ("n", "g"):
        np.testing.assert_allclose(moved.tensors[name].amax, measured.tensors[name].amax, rtol=1e-5)
        np.testing.assert_allclose(moved.tensors[name].channel_mean, measured.tensors[name].channel_mean, atol=1e-5)
    loss = [
        np.abs(run_onnx(lower_int8(g, plan, r), [x]) - run_onnx(graph, [x])).mean()
        for g, r in ((graph, ranges), (smoothed, moved))
    ]
    assert loss[1] < 0.7 * loss[0]


def _double(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for initializer in copy.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(initializer).astype(np.float64)
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del copy.graph.value_info[:]
    return copy


def test_smoothing_is_declined_where_it_would_not_be_exact() -> None:
    graph, windows, _ = exported("tests.models:tiny", 64)
    ranges = ranges_from_windows(graph, windows)
    plan = plan_int8(graph, ranges)
    reasons = {r.declined for r in smooth(graph, plan, ranges)[2]}
    assert any(r.startswith("its output is also read by LayerNormalization") for r in reasons)
    nothing = PrecisionPlan("int8", tuple(NodePlan(n.output, n.op, "fp32", "no") for n in plan.nodes))
    same, _, report = smooth(graph, nothing, ranges)
    assert same.model is graph.model
    assert same.history[-1].declined
    assert "nothing that reads it is quantised" in {r.declined for r in report}
    bare = _ranges(**{name: r.amax for name, r in ranges.tensors.items()})
    assert "no range per channel was measured" in {r.declined for r in smooth(graph, plan, bare)[2]}


def test_bias_correction_takes_the_mean_error_of_the_weights_away() -> None:
    """With the rounded weights and the float inputs: the mean of a MatMul is exact again, and a convolution's change of
    bias is what PyTorch computes on an image of the channel means."""
    graph, x = _outlier()
    ranges = ranges_from_windows(graph, [x])
    plan = plan_int8(graph, ranges)
    corrected, report = correct_bias(graph, plan, ranges)
    assert {r.output: r.declined for r in report} == {"a": "", "p": ""}
    before, after = _constants(graph), _constants(corrected)
    rounded = dict(tensors(lower_int8(graph, plan, ranges), x, {"m__dq", "w__dq"}))
    n = dict(tensors(graph, x, {"n"}))["n"]
    wanted, plain = (n @ before["m"]).mean((0, 1)), (n @ rounded["m__dq"]).mean((0, 1))
    assert np.abs(plain - wanted).max() > 1e-3
    np.testing.assert_allclose(plain + after["p__bias"], wanted, atol=1e-5)
    means = torch.tensor(ranges.tensors["g"].channel_mean).float().view(1, -1, 1, 1).expand(1, -1, 3, 3)
    change = torch.nn.functional.conv2d(means, torch.from_numpy(before["w"] - rounded["w__dq"]))
    np.testing.assert_allclose(after["a__bias"], change.flatten().numpy(), atol=1e-5)


def test_bias_correction_says_where_there_is_no_bias() -> None:
    graph, x = _outlier()
    ranges = ranges_from_windows(graph, [x])
    plan = plan_int8(graph, ranges)
    bare = _ranges(**{name: r.amax for name, r in ranges.tensors.items()})
    same, report = correct_bias(graph, plan, bare)
    assert same.history[-1].declined
    assert {r.declined for r in report} == {"no mean per channel was measured"}


def test_int8_without_ranges_or_without_candidates() -> None:
    graph, windows, reference = exported("tests.models:tiny", 64)
    with pytest.raises(DeployError, match="give --calib"):
        lower(graph, "int8", windows, reference, GATES["int8"], lambda s, t: None)
    narrow = _conv(_weights(9, 9, 1, 1))
    x = np.ones((1, 3, 8, 8), np.float32)
    with pytest.raises(DeployError, match="nothing qualifies"):
        lower(narrow, "int8", [x], run_onnx(narrow, [x]), GATES["int8"], lambda s, t: None, _ranges(x=1.0))


def test_names_survive_the_change_of_opset() -> None:
    """Ranges are keyed by tensor names, so preparing a graph must not rename any."""
    graph, _, _ = exported("tests.models:tiny", 64)
    before, after = (
        {value.name for node in each.model.graph for value in node.outputs}
        for each in (graph, prepare_int8(graph, "bf16"))
    )
    assert before <= after
