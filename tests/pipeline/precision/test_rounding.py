"""What INT8 has to earn: learned rounding, and SmoothQuant and bias corrections only where they lower an error."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.surgery import constant, output_name
from pipeline.precision import rounding
from pipeline.precision.bias import correct_bias
from pipeline.precision.earn import quantised
from pipeline.precision.evidence import Evidence, gather
from pipeline.precision.extremes import tensors
from pipeline.precision.layer_rows import from_matrix, matrix, places, rows
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8, weight_axis
from pipeline.precision.quantise import weight_scales
from pipeline.precision.rounding import descend, learn_rounding, moment
from pipeline.precision.sign import never_negative
from pipeline.precision.smooth import smooth
from pipeline.request import Int8Options, LowerOptions
from tests.pipeline.precision.lowering import graph_of, types
from tests.pipeline.precision.max_ranges import ranges_from_windows


def _node(graph: OnnxGraph, output: str) -> ir.Node:
    return next(node for node in graph.model.graph if output_name(node) == output)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 2, 1, 0], "strides": [2, 1]},
        {"dilations": [2, 1], "pads": [2, 1, 2, 1], "group": 2},
        {"group": 8, "pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ],
)
def test_a_convolution_is_the_product_of_its_rows(attributes: dict[str, object]) -> None:
    """Against ONNX Runtime, at every output pixel: strides, dilations, groups and each way to pad."""
    rng = np.random.default_rng(0)
    group = int(str(attributes.get("group", 1)))
    weight = rng.standard_normal((16, 8 // group, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "v"], ["x"]),
        helper.make_node("Conv", ["x", "w"], ["logits"], **attributes),
    ]
    constants = {"v": rng.standard_normal((8, 3, 1, 1), np.float32), "w": weight}
    image = rng.standard_normal((1, 3, 10, 9), np.float32)
    size = _size(nodes, constants, image)
    graph = graph_of(nodes, constants, image.shape, size)
    node, x = _node(graph, "logits"), dict(tensors(graph, image, {"x"}))["x"]
    chosen = places(node, 10**6, rng)
    got = rows(node, x, chosen) @ matrix(node, weight)
    wanted = run_onnx(graph, [image])[0].reshape(group, 16 // group, -1).swapaxes(1, 2)
    assert len(chosen) == size[2] * size[3]
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    np.testing.assert_array_equal(from_matrix(node, matrix(node, weight), weight.shape), weight)


def _size(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], image: np.ndarray) -> tuple[int, ...]:
    from onnx.reference import ReferenceEvaluator

    body = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", 1, image.shape)],
        [helper.make_tensor_value_info("logits", 1, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)])
    return tuple(ReferenceEvaluator(model).run(None, {"image": image})[0].shape)


def _problem(seed: int, depth: int, outputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(correlated rows, weights / scale, the nearest rounding, scale)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, depth)) @ rng.standard_normal((depth, depth)) + 1.0
    step = rng.uniform(0.5, 2, outputs)
    ratio = rng.uniform(-100, 100, (depth, outputs))
    return x, ratio, np.rint(ratio), step


def _error(x: np.ndarray, values: np.ndarray, ratio: np.ndarray, step: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(x @ ((values - ratio) * step)).mean(0))


@pytest.mark.parametrize("seed", range(5))
def test_no_single_flip_is_left_that_helps_and_the_best_of_all_is_near(seed: int) -> None:
    """Against all 2^8 roundings of a column: never above the nearest, and far closer to the best than that is."""
    x, ratio, nearest, step = _problem(seed, 8, 6)
    got = descend(moment(x.astype(np.float32)), ratio, nearest, step)
    assert ((got == np.floor(ratio)) | (got == np.ceil(ratio))).all()
    after, before = _error(x, got, ratio, step), _error(x, nearest, ratio, step)
    assert (after <= before * (1 + 1e-5)).all()
    every = np.array(list(itertools.product((0, 1), repeat=8)))[..., None] + np.floor(ratio)
    best = np.min([_error(x, values, ratio, step) for values in every], axis=0)
    assert (after - best).sum() < 0.5 * (before - best).sum()
    for i, j in itertools.product(range(8), range(6)):
        flipped = got.copy()
        flipped[i, j] = np.floor(ratio[i, j]) + np.ceil(ratio[i, j]) - got[i, j]
        assert _error(x, flipped, ratio, step)[j] >= after[j] * (1 - 1e-5)


def test_blocks_change_nothing_and_whole_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    x, ratio, nearest, step = _problem(7, 50, 4)
    ratio[::7], nearest[::7] = 0.0, 0.0
    ratio[3], nearest[3] = 127.0, 127.0
    results = []
    for block in (1, 16, 64):
        monkeypatch.setattr(rounding, "BLOCK", block)
        results.append(descend(moment(x.astype(np.float32)), ratio, nearest, step))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert (results[0] != nearest).any()
    assert not results[0][::7].any()
    assert (results[0][3] == 127).all()


def _network() -> tuple[OnnxGraph, list[np.ndarray]]:
    """Convolution, ReLU, a 3x3 and a depthwise-like grouped convolution, a classifier; windows of smooth noise."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "v", "bv"], ["c"]),
        helper.make_node("Relu", ["c"], ["x"]),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y", "g", "bg"], ["z"], pads=[1, 1, 1, 1], group=2),
        helper.make_node("Conv", ["z", "k"], ["logits"]),
    ]
    shapes = {"v": (32, 3, 1, 1), "w": (32, 32, 3, 3), "g": (32, 16, 3, 3), "k": (4, 32, 1, 1)}
    constants = {n: rng.standard_normal(s, np.float32) / np.float32(np.prod(s[1:])) ** 0.5 for n, s in shapes.items()}
    constants |= {n: rng.standard_normal(32, np.float32) * np.float32(0.3) for n in ("bv", "b", "bg")}
    windows = [np.cumsum(rng.standard_normal((1, 3, 16, 16), np.float32), 3) / 2 for _ in range(12)]
    return graph_of(nodes, constants, (1, 3, 16, 16), (1, 4, 16, 16)), windows


def _measured(unsigned: bool = False) -> tuple[OnnxGraph, list[np.ndarray], Ranges, PrecisionPlan, Evidence]:
    graph, windows = _network()
    ranges = ranges_from_windows(graph, windows[:8])
    plan = plan_int8(graph, ranges, options=Int8Options(unsigned=unsigned))
    assert {n.output for n in plan.nodes if n.precision == "int8"} == {"y", "z"}
    return graph, windows, ranges, plan, gather(graph, plan, windows[:8])


def _stored(graph: OnnxGraph) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in graph.model.graph.initializers.items()}


def test_learned_weights_are_floor_or_ceil_and_keep_the_output_closer_in_pytorch() -> None:
    """On windows that were not learned from, the layer computed by torch.nn.functional.conv2d."""
    graph, windows, ranges, plan, evidence = _measured()
    learned, report = learn_rounding(graph, plan, ranges, evidence)
    assert {r.output: r.declined for r in report} == {"y": "", "z": ""}
    assert all(0 < r.flipped < 0.5 and r.after < r.before for r in report)
    for output, source, group in (("y", "x", 1), ("z", "y", 2)):
        node = _node(graph, output)
        weight = constant(node.inputs[1])
        assert weight is not None
        scale = weight_scales(weight.astype(np.float32), weight_axis(node)).reshape(-1, 1, 1, 1)
        ratio, values = weight / scale, learned[str(node.inputs[1].name)]  # type: ignore[union-attr]
        assert values.dtype == np.int8
        assert ((values == np.floor(ratio)) | (values == np.ceil(ratio))).all()
        errors = []
        for used in (np.rint(ratio), values.astype(np.float32)):
            x = [torch.from_numpy(dict(tensors(graph, w, {source}))[source]) for w in windows[8:]]
            change = torch.from_numpy((used * scale - weight).astype(np.float32))
            errors.append(sum(float(torch.nn.functional.conv2d(v, change, padding=1, groups=group).square().mean())
                              for v in x))  # fmt: skip
        assert errors[1] < 0.7 * errors[0]


def test_the_lowered_graph_differs_in_int8_weights_alone() -> None:
    graph, windows, ranges, plan, evidence = _measured()
    learned, _ = learn_rounding(graph, plan, ranges, evidence)
    plain, better = (lower_int8(graph, plan, ranges, learned=values) for values in ({}, learned))
    onnx.checker.check_model(ir.to_proto(better.model), full_check=True)
    types(better)
    assert [n.op_type for n in plain.model.graph] == [n.op_type for n in better.model.graph]
    before, after = _stored(plain), _stored(better)
    assert before.keys() == after.keys()
    assert {n for n in before if not np.array_equal(before[n], after[n])} == {"w__int8", "g__int8"}
    truth = run_onnx(graph, windows[8:])
    errors = [np.square(run_onnx(g, windows[8:]) - truth).mean() for g in (plain, better)]
    assert errors[1] < errors[0]


def test_an_interrupted_learning_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _, ranges, plan, evidence = _measured()
    wanted, _ = learn_rounding(graph, plan, ranges, evidence)
    state, log, calls = tmp_path / "state.npz", list[str](), list[str]()
    original = rounding._rounded

    def interrupted(node: ir.Node, *rest: object) -> np.ndarray:
        calls.append(output_name(node))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(node, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rounding, "_rounded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn_rounding(graph, plan, ranges, evidence, state=state, log=lambda step, text: log.append(text))
    assert state.exists()
    assert "give the same command again" in log[-1]
    got, _ = learn_rounding(graph, plan, ranges, evidence, state=state, log=lambda step, text: log.append(text))
    assert "continued after 1 layer(s)" in log[-1]
    assert calls == ["y", "z", "z"]
    assert not state.exists()
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize("fault", ["damaged", "another"])
def test_a_state_that_is_not_this_ones_is_not_used(fault: str, tmp_path: Path) -> None:
    graph, _, ranges, plan, evidence = _measured()
    state, log = tmp_path / "state.npz", list[str]()
    if fault == "damaged":
        state.write_bytes(b"PK\x03\x04 no archive")
    else:
        with state.open("wb") as file:
            np.savez(file, identity=np.array("of another"), names=np.array(["y"]))
    learned, _ = learn_rounding(graph, plan, ranges, evidence, state=state, log=lambda step, text: log.append(text))
    assert fault in log[0]
    assert "starting over" in log[0]
    assert learned.keys() == {"w", "g"}


def test_a_bias_correction_that_the_photographs_contradict_is_declined() -> None:
    """Means that were measured elsewhere: added blindly they move the output, judged they are left out."""
    graph, _, ranges, plan, evidence = _measured()
    right = correct_bias(graph, plan, ranges, evidence=evidence)[1]
    assert any(not r.declined and r.before is not None and r.after is not None and r.after < r.before for r in right)
    wrong = replace(ranges, tensors={
        n: replace(t, channel_mean=tuple(-100 * m for m in t.channel_mean or ())) for n, t in ranges.tensors.items()
    })  # fmt: skip
    assert [r.declined for r in correct_bias(graph, plan, wrong)[1]] == ["", ""]
    same, report = correct_bias(graph, plan, wrong, evidence=evidence)
    assert {r.declined for r in report} == {"it lowers no error"}
    assert all(r.before is not None and r.after is not None and r.after > r.before for r in report)
    assert same.model is graph.model


def test_smoothing_is_kept_only_where_it_lowers_the_error() -> None:
    """Channels said to be loud that are quiet: the factors starve the others."""
    from tests.pipeline.precision.test_lower_int8 import _outlier

    graph, x = _outlier()
    ranges = ranges_from_windows(graph, [x])
    plan = plan_int8(graph, ranges)
    evidence = gather(graph, plan, [x])
    (kept,) = smooth(graph, plan, ranges, evidence=evidence)[2]
    assert not kept.declined
    assert kept.error_before is not None
    assert kept.error_after is not None
    assert kept.error_after < kept.error_before
    peaks = [1e4 if i in (0, 1, 3) else 1e-2 for i in range(16)]
    wrong = replace(ranges, tensors={
        n: replace(t, channel_amax=tuple(peaks)) if n in ("n", "g") else t for n, t in ranges.tensors.items()
    })  # fmt: skip
    assert not smooth(graph, plan, wrong)[2][0].declined
    same, moved, (item,) = smooth(graph, plan, wrong, evidence=evidence)
    assert item.declined == "it lowers no error"
    assert same.model is graph.model
    assert moved == wrong


def test_a_step_that_makes_the_logits_worse_is_not_kept() -> None:
    graph, windows, ranges, plan, _ = _measured()
    options, log = LowerOptions(rest="fp32", rounding="learned"), list[str]()
    falling = iter([1.0, 0.5, 0.25])
    result, _, _, report = quantised(
        graph, plan, ranges, windows[:8], options=options, error=lambda g: next(falling), log=lambda s, t: log.append(t)
    )
    assert report["rounding"]["kept"]
    assert report["bias_correction"]["kept"]
    rising = iter([1.0, 2.0, 2.0])
    plain, origin, _, report = quantised(
        graph, plan, ranges, windows[:8], options=options, error=lambda g: next(rising), log=lambda s, t: log.append(t)
    )
    assert not report["rounding"]["kept"]
    assert not report["bias_correction"]["kept"]
    assert origin is graph
    assert log[-1].endswith("so that none is kept")
    wanted = _stored(lower_int8(graph, plan, ranges))
    assert all(np.array_equal(value, wanted[name]) for name, value in _stored(plain).items())
    assert any(not np.array_equal(value, wanted.get(name)) for name, value in _stored(result).items())


def test_unsigned_activations_use_every_level_and_keep_zero() -> None:
    """x = relu(c) has 256 levels, y, which may be negative, its 255; what OpenVINO makes of it is what is written."""
    from engines.backends import get_backend
    from engines.contract import BuildConfig
    from pipeline.graph.proto import stored

    graph, windows, ranges, plan, _ = _measured(unsigned=True)
    lowered = lower_int8(graph, plan, ranges)
    zeros = {output_name(n): int(constant(n.inputs[2])) for n in lowered.model.graph if n.op_type == "QuantizeLinear"}  # type: ignore[arg-type]
    assert zeros == {"x__int8": -128, "y__int8": 0}
    found = dict(tensors(lowered, windows[0], {"x", "x__dq"}))
    step = ranges.tensors["x"].amax / 255
    assert (found["x__dq"][found["x"] == 0] == 0).all()
    inside = found["x"] <= ranges.tensors["x"].amax
    assert np.abs(found["x__dq"] - found["x"])[inside].max() <= step / 2 * 1.001
    backend, config = get_backend("openvino"), BuildConfig("int8", 1)
    with stored(lowered.model) as path:
        blob = backend.build(path, config)
    wanted = run_onnx(lowered, windows[8:9])
    with backend.load(blob, config) as session:
        np.testing.assert_allclose(session.run(windows[8]), wanted, atol=2e-2 * np.abs(wanted).max())


def test_what_cannot_be_negative_is_told_by_the_graph() -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["relu"]),
        helper.make_node("MaxPool", ["relu"], ["pool"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["image"], ["gate"]),
        helper.make_node("Mul", ["pool", "gate"], ["mul"]),
        helper.make_node("Concat", ["mul", "relu"], ["cat"], axis=1),
        helper.make_node("Clip", ["image", "zero", "six"], ["clip"]),
        helper.make_node("Clip", ["image", "minus", "six"], ["signed"]),
        helper.make_node("Add", ["relu", "shift"], ["shifted"]),
        helper.make_node("Resize", ["relu", "", "scales"], ["cubic"], mode="cubic"),
        helper.make_node("Resize", ["relu", "", "scales"], ["linear"], mode="linear"),
        helper.make_node("Concat", ["cat", "clip", "signed", "shifted", "cubic", "linear"], ["logits"], axis=1),
    ]
    constants = {"zero": np.float32(0), "six": np.float32(6), "minus": np.float32(-1), "shift": np.float32(-0.5),
                 "scales": np.float32([1, 1, 1, 1])}  # fmt: skip
    graph = graph_of(nodes, constants, (1, 3, 4, 4), (1, 21, 4, 4))
    signs = {output_name(node): never_negative(node.outputs[0]) for node in graph.model.graph}
    assert {name for name, sure in signs.items() if sure} == {"relu", "pool", "gate", "mul", "cat", "clip", "linear"}
