"""FP16 and BF16 with FP32 islands: typed throughout, rounded for real, and caught when it overflows."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from calib.data.scenes import render
from calib.ranges.ranges import TensorRange
from engines.contract import Float32
from engines.errors import DeployError, GateError
from engines.images.palettes import palette_for
from engines.proof.agreement import GATES, Gate, compare_logits
from engines.proof.golden import windows_of
from engines.proof.stress import stress_windows
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, from_model, run_onnx
from pipeline.precision.extremes import extremes
from pipeline.precision.islands import plan_float
from pipeline.precision.lower import lower
from pipeline.precision.lower_float import lower_float, prepare
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.views import look
from pipeline.request import LowerOptions
from tests.pipeline.precision.lowering import exported, graph_of, types
from tests.pipeline.precision.max_ranges import ranges_from_windows

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def _silent(step: str, text: str) -> None: ...


def _lowered(model: str, side: int, target: str) -> tuple[OnnxGraph, PrecisionPlan]:
    graph, windows, _ = exported(model, side)
    origin = prepare(graph, target)
    plan = plan_float(origin, target, extremes(origin, windows))
    return lower_float(origin, plan), plan


@pytest.mark.parametrize("target", ["fp16", "bf16"])
def test_every_tensor_has_the_type_that_the_plan_says(target: str) -> None:
    lowered, plan = _lowered("tests.models:tiny", 64, target)
    onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
    found = types(lowered)
    assert found["image"] == found["logits"] == TensorProto.FLOAT
    for node in ir.to_proto(lowered.model).graph.node:
        planned = plan.precision(node.output[0])
        if planned is None:
            continue
        wanted = TensorProto.FLOAT if planned == "fp32" else HALF[target]
        floats = [n for n in (*node.input, *node.output) if found.get(n) in (TensorProto.FLOAT, *HALF.values())]
        assert {found[n] for n in floats} == {wanted}, node
    assert {p.op for p in plan.islands} == {"LayerNormalization", "Softmax", "Conv"}
    assert [p.output for p in plan.islands if p.op == "Conv"] == ["logits"]
    assert all(p.reason for p in plan.islands)


@pytest.mark.parametrize("target", ["fp16", "bf16"])
def test_no_cast_is_superfluous(target: str) -> None:
    """No tensor is cast twice to a type, none back to what it came from, and none that nobody reads."""
    lowered, _ = _lowered("tests.models:tiny", 64, target)
    nodes = ir.to_proto(lowered.model).graph.node
    casts = [n for n in nodes if n.op_type == "Cast"]
    made_by_cast = {n.output[0] for n in casts}
    assert len({(n.input[0], n.attribute[0].i) for n in casts}) == len(casts)
    assert not [n for n in casts if n.input[0] in made_by_cast]
    read = {name for n in nodes for name in n.input} | {"logits"}
    assert made_by_cast <= read


@pytest.mark.parametrize("target", ["fp16", "bf16"])
@pytest.mark.parametrize(("model", "side"), [("demo", 128), ("tests.models:tiny_setr", 64)])
def test_rounded_graphs_agree_with_fp32(model: str, side: int, target: str) -> None:
    """At most 16 units in the last place of the largest logit after some 200 roundings."""
    _, windows, reference = exported(model, side)
    lowered, _ = _lowered(model, side, target)
    got = compare_logits(target, run_onnx(emulate(lowered), list(windows)), "fp32", reference)
    assert got.relative is not None
    assert got.relative < 16 * {"fp16": 2**-11, "bf16": 2**-8}[target]
    assert got.mean_abs is not None
    assert got.mean_abs > 0  # it did round


def test_onnx_runtime_accepts_the_typed_fp16_graph() -> None:
    _, windows, reference = exported("demo", 128)
    lowered, _ = _lowered("demo", 128, "fp16")
    got = compare_logits("fp16", run_onnx(lowered, list(windows)), "fp32", reference)
    assert got.relative is not None
    assert got.relative < 16 * 2**-11


@pytest.mark.parametrize(("target", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_emulation_rounds_after_each_node(target: str, dtype: type) -> None:
    """Against numpy, with an overflow that ONNX Runtime's own FP16 execution hides."""
    nodes = [
        helper.make_node("Mul", ["image", "k"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "i"], ["c"]),
        helper.make_node("Add", ["c", "c"], ["logits"]),
    ]
    constants = {"k": np.float32([[[[300.3]]]]), "i": np.float32([[[[1 / 300.3]]]])}
    graph = prepare(graph_of(nodes, constants, (1, 3, 2, 2), (1, 3, 2, 2)), target)
    x = np.linspace(0.1, 300, 12, dtype=np.float32).reshape(1, 3, 2, 2)
    plan = plan_float(graph, target, extremes(graph, [x])).with_everything()
    got = run_onnx(emulate(lower_float(graph, plan)), [x])
    half = [value.astype(dtype).astype(np.float32) for value in (x, constants["k"], constants["i"])]
    with np.errstate(over="ignore"):
        product = np.maximum((half[0] * half[1]).astype(dtype).astype(np.float32), 0)
        back = (product * half[2]).astype(dtype).astype(np.float32)
        expected = (back + back).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(got, expected)
    assert np.isinf(got).any() == (target == "fp16")


def test_planted_overflow_comes_out_right_with_islands() -> None:
    graph, windows, reference = exported("tests.models:overflow", 64)
    result = lower(graph, "fp16", windows, reference, GATES["fp16"], _silent)
    reasons = [n["reason"] for n in result.report["plan"]["nodes"] if "fp16 holds 65504" in n["reason"]]
    assert any("reaches" in reason for reason in reasons)
    assert result.agreements[0].labels > 0.998


def test_planted_overflow_is_caught_without_islands() -> None:
    """The gate names the very tensor that overflows; BF16, which has the range, passes without islands."""
    graph, windows, reference = exported("tests.models:overflow", 64)
    options = LowerOptions(islands=False)
    with pytest.raises(GateError, match=r"first divergence: .* becomes infinite") as error:
        lower(graph, "fp16", windows, reference, GATES["fp16"], _silent, options=options)
    named = str(error.value).split("first divergence: ")[1].split(" ")[0]
    ranges = extremes(graph, windows[:1])
    order = list(ranges)
    first = next(name for name in order if max(map(abs, ranges[name])) > 65504)
    assert named == first
    random_weights = Gate(GATES["bf16"].max_relative, 0.97)  # near ties everywhere
    lower(graph, "bf16", windows, reference, random_weights, _silent, options=options)


def _bright(peak: float) -> tuple[OnnxGraph, Float32, list[Float32], Float32]:
    """A network that squares what is bright, up to `peak` where all is 255: (graph, window, stress windows, brighter).

    The window is dim: there it stays below 2000.
    """
    nodes = [
        helper.make_node("Mul", ["image", "gain"], ["lit"]),
        helper.make_node("Mul", ["lit", "lit"], ["squared"]),
        helper.make_node("Mul", ["squared", "back"], ["small"]),
        helper.make_node("Conv", ["small", "w"], ["logits"]),
    ]
    gain = np.sqrt(peak) / 255
    constants = {
        "gain": np.float32(gain), "back": np.float32(10 / peak), "w": np.eye(3, dtype=np.float32)[:, :, None, None],
    }  # fmt: skip
    graph = graph_of(nodes, constants, (1, 3, 32, 32), (1, 3, 32, 32))
    spec = ModelSpec("test", "", ("a", "b", "c"), palette_for(("a", "b", "c")), mean=(0, 0, 0), std=(1, 1, 1))
    tiling = Tiling(32, 32, 32, 32)
    dim = (render(0, 32, 32).image // 8).astype(np.uint8)
    (window,), (photograph,) = windows_of(dim, spec, tiling), windows_of(255 - dim, spec, tiling)
    return graph, window, stress_windows(dim, spec, tiling), photograph


def test_a_brighter_picture_than_the_sample_gets_an_island() -> None:
    """On the sample alone fp16 passes, with all of its labels, and is infinite on a brighter photograph."""
    graph, window, stress, photograph = _bright(1e5)
    reference = run_onnx(graph, [window])
    alone = lower(graph, "fp16", [window], reference, GATES["fp16"], _silent)
    assert alone.agreements[0].labels == 1.0
    assert not np.isfinite(run_onnx(emulate(alone.graph), [photograph])).all()
    for views in (look(graph, "fp16", stress), look(graph, "fp16", stress[:1], [photograph])):
        lowered = lower(graph, "fp16", [window], reference, GATES["fp16"], _silent, views=views)
        squared = next(n for n in lowered.report["plan"]["nodes"] if n["output"] == "squared")
        assert squared["precision"] == "fp32"
        assert "fp16 holds 65504 (margin 4)" in squared["reason"]
        got = run_onnx(emulate(lowered.graph), [photograph, *stress])
        np.testing.assert_allclose(got, run_onnx(graph, [photograph, *stress]), rtol=2e-3, atol=1e-3)


def test_ranges_of_a_file_count_for_half_types() -> None:
    graph, window, _, photograph = _bright(1e5)
    ranges = ranges_from_windows(graph, [photograph])
    known = TensorRange(1e5, low=0.0, high=1e5, rms=1.0)
    ranges = replace(ranges, tensors={**ranges.tensors, "squared": known})
    lowered = lower(graph, "fp16", [window], run_onnx(graph, [window]), GATES["fp16"], _silent, ranges=ranges)
    assert np.isfinite(run_onnx(emulate(lowered.graph), [photograph])).all()


def test_without_islands_a_brighter_picture_is_refused() -> None:
    graph, window, stress, _ = _bright(1e5)
    options = LowerOptions(islands=False)
    with pytest.raises(GateError, match=r"fp16 stress: .* infinite on .* 'mosaic'.*first divergence: squared"):
        lower(
            graph, "fp16", [window], run_onnx(graph, [window]), GATES["fp16"], _silent, options=options,
            views=look(graph, "fp16", stress),
        )  # fmt: skip


def test_the_plan_shows_its_headroom() -> None:
    graph, window, stress, _ = _bright(1e3)
    lines: list[str] = []
    lowered = lower(
        graph, "fp16", [window], run_onnx(graph, [window]), GATES["fp16"], lambda step, text: lines.append(text),
        views=look(graph, "fp16", stress),
    )  # fmt: skip
    rooms = {n["output"]: n["headroom"] for n in lowered.report["plan"]["nodes"]}
    assert rooms["squared"] == pytest.approx(65504 / 1e3, rel=1e-3)
    assert rooms["logits"] is None  # in fp32
    assert any("least headroom 65.5x at squared" in text for text in lines)
    assert PrecisionPlan.from_json(lowered.report["plan"]).tightest == ("squared", rooms["squared"])
    old = {"target": "fp16", "nodes": [{"output": "a", "op": "Mul", "precision": "fp16", "reason": ""}]}
    assert PrecisionPlan.from_json(old).tightest is None  # of a bundle before there was any


def _one(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], peak: float = 1.0, target: str = "fp16"):  # type: ignore[no-untyped-def]
    graph = prepare(graph_of(nodes, constants, (1, 3, 4, 4), (1, 3, 4, 4)), target)
    x = np.full((1, 3, 4, 4), peak, np.float32)
    return plan_float(graph, target, extremes(graph, [x]))


def test_each_reason_for_an_island() -> None:
    def add(value: float) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
        nodes = [helper.make_node("Add", ["image", "c"], ["a"]), helper.make_node("Conv", ["a", "w"], ["logits"])]
        return nodes, {"c": np.float32(value), "w": np.eye(3, dtype=np.float32)[:, :, None, None]}

    assert _one(*add(1.0)).precision("a") == "fp16"
    assert "underflow" in _one(*add(1e-7)).nodes[0].reason
    large = [helper.make_node("Mul", ["image", "c"], ["a"]), helper.make_node("Conv", ["a", "w"], ["logits"])]
    assert "constant c holds 1e+05" in _one(large, add(1e5)[1], peak=1e-3).nodes[0].reason
    assert "reaches 2e+04, fp16 holds 65504 (margin 4)" in _one(*add(1.0), peak=2e4).nodes[0].reason
    assert _one(*add(1.0), peak=1.6e4).precision("a") == "fp16"
    assert _one(*add(1e5), target="bf16").precision("a") == "bf16"
    tiny = [helper.make_node("Mul", ["image", "image"], ["a"]), helper.make_node("Conv", ["a", "w"], ["logits"])]
    assert "below the smallest normal fp16" in _one(tiny, {"w": add(1)[1]["w"]}, peak=1e-3).nodes[0].reason
    unknown = [helper.make_node("Celu", ["image"], ["d"]), helper.make_node("Add", ["d", "z"], ["logits"])]
    assert "ONNX defines no bf16 Celu" in _one(unknown, {"z": np.float32(0)}, target="bf16").nodes[0].reason


def test_a_missing_range_is_an_error_not_a_guess() -> None:
    graph = prepare(exported("tests.models:tiny", 64)[0], "fp16")
    with pytest.raises(DeployError, match="got none for tensor 'image'"):
        plan_float(graph, "fp16", {})


def test_a_plan_survives_json() -> None:
    _, plan = _lowered("tests.models:tiny", 64, "fp16")
    assert PrecisionPlan.from_json(plan.to_json()) == plan
    with pytest.raises(DeployError, match="precision plan"):
        PrecisionPlan.from_json({"target": "fp16"})


def test_control_flow_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, [1, 3, 4, 4])]
    )
    node = helper.make_node("If", ["c"], ["logits"], then_branch=branch, else_branch=branch)
    graph = graph_of([node], {"c": np.array(True)}, (1, 3, 4, 4), (1, 3, 4, 4))
    with pytest.raises(DeployError, match="got a If node"):
        prepare(graph, "fp16")


def test_a_constant_that_a_node_makes_has_a_range_too() -> None:
    """onnxsim leaves Constant nodes with value_float in place; nothing of the image reaches them."""
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["image", "two"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w"], ["logits"]),
    ]
    graph = graph_of(nodes, {"w": np.ones((5, 3, 1, 1), np.float32)}, (1, 3, 8, 8), (1, 5, 8, 8))
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)
    found = extremes(graph, [x])
    assert found["two"] == (2.0, 2.0)
    assert found["scaled"] == pytest.approx((2 * x.min(), 2 * x.max()))
    plan_float(graph, "fp16", found)


@pytest.mark.parametrize("factor", [2.0, 1.5, 0.5])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("version", [9, 10])
def test_an_old_resize_stays_where_it_was(version: int, mode: str, factor: float) -> None:
    """Until opset 10 pixels lie asymmetrically, since then half a pixel off by default: against ONNX Runtime."""
    if version == 9 and factor < 1:
        pytest.skip("Upsample only enlarges")
    size = int(8 * factor)
    rng, scales = np.random.default_rng(0), numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), "s")
    weight = numpy_helper.from_array(rng.normal(size=(5, 3, 1, 1)).astype(np.float32), "w")
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["c"]),
            helper.make_node("Upsample" if version == 9 else "Resize", ["c", "s"], ["logits"], mode=mode),
        ],
        "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 5, size, size))], [weight, scales],
    )  # fmt: skip
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    graph = from_model(ir.from_proto(proto), ())
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run_onnx(prepare(graph, "bf16"), [x]), run_onnx(graph, [x]), atol=1e-6)


class _Sampled(nn.Module):
    """Values read at places that a layer moves by less than bf16 resolves near the border of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.offsets = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.classify = nn.Conv2d(4, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        side = torch.linspace(-1, 1, image.shape[2])
        rows, columns = torch.meshgrid(side, side, indexing="ij")
        places = torch.stack([columns, rows], 2)[None] + 0.01 * self.offsets(image).permute(0, 2, 3, 1)
        read = nn.functional.grid_sample(self.values(image), places, align_corners=False)
        return self.classify(read)


def sampled() -> nn.Module:
    torch.manual_seed(0)
    return _Sampled()


def test_places_in_a_map_are_fp32_where_the_rest_is_bf16() -> None:
    """And the logits are then as near to fp32 as rounding values alone leaves them."""
    graph, _, _ = exported("tests.pipeline.precision.test_lower_float:sampled", 256)
    windows = [np.random.default_rng(0).standard_normal((1, 3, 256, 256), np.float32)]
    expected = run_onnx(graph, windows)
    origin, errors = prepare(graph, "bf16"), []  # type: OnnxGraph, list[float]
    plan = plan_float(origin, "bf16", extremes(origin, windows))
    assert {each.op for each in plan.islands if "GridSample reads at" in each.reason} >= {"Add", "Mul"}
    coarse = replace(plan, nodes=tuple(
        replace(each, precision="bf16", reason="") if "GridSample reads at" in each.reason else each
        for each in plan.nodes))  # fmt: skip
    for each in (plan, coarse):
        errors.append(float((run_onnx(emulate(lower_float(origin, each)), windows) - expected).std()))
    assert errors[0] < 0.2 * errors[1]
