"""Q and DQ stand where NVIDIA's rules want them, and every layer that is quantised here is by NVIDIA's own tool too."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from calib.data.scenes import render
from engines.contract import Float32
from engines.proof.agreement import Gate
from pipeline.graph.export import simplify
from pipeline.graph.given import import_onnx
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.rewrites import apply_rules
from pipeline.graph.surgery import constant
from pipeline.precision.lower import lower, prepare_int8
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8
from pipeline.request import LowerOptions
from tests.conftest import SHARED
from tests.pipeline.precision.lowering import exported
from tests.pipeline.precision.max_ranges import ranges_from_windows
from tests.pipeline.precision.placement import LAYERS, Placement

OWN = {"demo": ("demo", 128), "tiny_setr": ("tests.models:tiny_setr", 64)}
NETWORKS = [*OWN, "cgnet", "edanet", "fddwnet", "mininetv2"]
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
OPEN = Gate(max_relative=np.inf, min_labels=0.0)  # where the pairs stand is looked at, not what they cost

# What Model-Optimizer quantises and this project does not, by the beginning of the reason in the plan.
WE_LEAVE = (
    "both operands are activations",  # attention: it does so too beyond 512 tokens, and a window of 1024 has more
    "depthwise over",  # bound by memory; --int8-depthwise asks for it
    "makes the logits",  # steps there move class borders
    "3 input channels",  # the first layer: 1 % of the work, and all that follows stands on it
)


@cache
def network(name: str) -> tuple[OnnxGraph, tuple[Float32, ...]]:
    """The rewritten graph, and two windows."""
    if name in OWN:
        graph, windows, _ = exported(*OWN[name])
        return apply_rules(graph)[-1], windows
    path = SHARED / "onnx_cityscapes" / f"{name}_cityscapes.onnx"
    if not path.is_file():
        pytest.skip(f"no {path.name}: real networks are not part of the repository")
    pictures = [(render(seed, 128, 256).image - MEAN) / STD for seed in (0, 1)]
    windows = tuple(picture.transpose(2, 0, 1)[None].astype(np.float32) for picture in pictures)
    return apply_rules(simplify(import_onnx(path, (128, 256))))[-1], windows


def quantised(name: str) -> tuple[OnnxGraph, OnnxGraph, PrecisionPlan]:
    """Before, after, and the plan."""
    graph, windows = network(name)
    origin = prepare_int8(graph, "fp32")
    ranges = ranges_from_windows(origin, windows)
    plan = plan_int8(origin, ranges)
    return origin, lower_int8(origin, plan, ranges), plan


@pytest.mark.parametrize("rest", ["fp32", pytest.param("fp16", marks=pytest.mark.slow), "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_pairs_stand_where_the_rules_want_them(name: str, rest: str) -> None:
    """In what is built: smoothed, corrected, lowered, and with the rest in a half type."""
    graph, windows = network(name)
    reference, ranges = run_onnx(graph, list(windows)), ranges_from_windows(graph, windows)
    lowered = lower(graph, "int8", windows, reference, OPEN, lambda step, text: None, ranges, LowerOptions(rest=rest))
    placement = Placement(ir.to_proto(lowered.graph.model))
    assert list(placement.violations()) == []
    assert "int8" in placement.quantised().values()


def recorded(name: str) -> list[list[str]]:
    lines = (Path(__file__).parent / "modelopt.txt").read_text(encoding="utf-8").splitlines()
    return [line.split()[1:] for line in lines if line.split()[0] == name]


def _described(graph: OnnxGraph, precision: Callable[[ir.Node], str]) -> list[list[str]]:
    layers = [node for node in graph.model.graph if node.op_type in LAYERS]
    arrays = [constant(node.inputs[1]) for node in layers]
    shapes = ["-" if array is None else "x".join(map(str, array.shape)) for array in arrays]
    return [[node.op_type, text, precision(node)] for node, text in zip(layers, shapes, strict=True)]


@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_is_quantised_that_model_optimizer_leaves(name: str) -> None:
    """And what it quantises beyond that is left alone here for one of the reasons in `WE_LEAVE`."""
    origin, _, plan = quantised(name)
    ours = _described(origin, lambda node: "int8" if plan.precision(str(node.outputs[0].name)) == "int8" else "float")
    theirs = recorded(name)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs], "another graph than was recorded; record it again"
    reasons = {node.output: node.reason for node in plan.nodes}
    names = [str(node.outputs[0].name) for node in origin.model.graph if node.op_type in LAYERS]
    for name_, (_, _, mine), (_, _, his) in zip(names, ours, theirs, strict=True):
        assert not (mine == "int8" and his != "int8"), f"{name_}: Model-Optimizer does not quantise it"
        assert his == "float" or mine == "int8" or reasons[name_].startswith(WE_LEAVE), (name_, reasons[name_])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_record_is_what_model_optimizer_does(name: str, tmp_path: Path) -> None:
    modelopt = pytest.importorskip("modelopt.onnx.quantization", reason="nvidia-modelopt[onnx] is not installed")
    origin, _, _ = quantised(name)
    _, windows = network(name)
    source, made = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    ir.save(origin.model, source)
    modelopt.quantize(
        str(source), quantize_mode="int8", calibration_method="max", calibration_eps=["cpu"], output_path=str(made),
        calibration_data={str(origin.model.graph.inputs[0].name): np.concatenate(windows)},
        high_precision_dtype="fp32", log_level="ERROR",
    )  # fmt: skip
    placement = Placement(onnx.load(made))

    def precision(node: ir.Node) -> str:
        final = placement.makers[str(node.outputs[0].name)]
        pairs = [placement.maker(value, "DequantizeLinear") is not None for value in final.input[:2]]
        return "int8" if all(pairs) else "weight" if pairs[1] else "float"

    assert _described(origin, precision) == recorded(name)


def _node(graph: onnx.GraphProto, op: str, index: int = 0) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [node for node in graph.node if node.op_type == op]
    return found[index]


def _maker(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [node for node in graph.node if name in node.output]
    return found[0]


def _layer(graph: onnx.GraphProto) -> onnx.NodeProto:
    """A quantised MatMul."""
    made = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found: list[onnx.NodeProto] = [node for node in graph.node if node.op_type == "MatMul" and node.input[0] in made]
    return found[0]


def _change(graph: onnx.GraphProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(iter([tensor for tensor in graph.initializer if tensor.name == name]))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def _zero_point(graph: onnx.GraphProto) -> None:
    _change(graph, _node(graph, "DequantizeLinear").input[2], lambda zero: zero + np.int8(3))


def _unsigned(graph: onnx.GraphProto) -> None:
    _change(graph, "int8_zero", lambda zero: zero.astype(np.uint8))


def _axis(graph: onnx.GraphProto) -> None:
    _maker(graph, _layer(graph).input[1]).attribute[0].i = 0


def _scale(graph: onnx.GraphProto) -> None:
    _change(graph, _node(graph, "QuantizeLinear").input[1], lambda scale: scale * 0)


def _float_weight(graph: onnx.GraphProto) -> None:
    _layer(graph).input[1] = _maker(graph, _layer(graph).input[1]).input[1]


def _bias(graph: onnx.GraphProto) -> None:
    _node(graph, "Conv").input[2] = _layer(graph).input[0]


def _between(graph: onnx.GraphProto) -> None:
    _node(graph, "QuantizeLinear", -1).input[0] = _layer(graph).output[0]


def _moved(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Identity", [_node(graph, "QuantizeLinear").input[0]], ["moved"]))
    _node(graph, "QuantizeLinear", 1).input[0] = "moved"


def _coarse(graph: onnx.GraphProto) -> None:
    _change(graph, _maker(graph, _layer(graph).input[1]).input[0], lambda weight: weight // 3)


def _shared(graph: onnx.GraphProto) -> None:
    _node(graph, "LayerNormalization").input[0] = _layer(graph).input[0]


FAULTS = {
    "int8 zero": _zero_point, "is not an int8": _unsigned, "one per output channel": _axis, "positive number": _scale,
    "one of its two inputs": _float_weight, "its bias is quantised": _bias, "its bias or activation function": _between,
    "the same values have": _moved, "of 127 steps": _coarse, "reads a dequantised tensor": _shared,
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_the_checker_finds_a_broken_rule(message: str) -> None:
    _, lowered, _ = quantised("tiny_setr")
    proto = ir.to_proto(lowered.model)
    FAULTS[message](proto.graph)
    found = list(Placement(proto).violations())
    assert any(message in line for line in found), found
