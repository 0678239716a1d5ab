"""Which convolutions and linear layers are quantised to 8 bits, and why each of the others is not.

The rules are those under which TensorRT has fast INT8 kernels (notes of NVIDIA's Model-Optimizer): inputs and weights
of Conv and of products with a constant, no product of two activations (attention), no GEMV, no narrow layers, no
classifier; depthwise convolutions on request only, since they are bound by memory and rarely gain.  Of what they leave,
the target takes the layers whose roofline it lowers (`pipeline.precision.placement`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.ranges.ranges import Ranges
from engines.errors import DeployError
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import constant, integer, output_name, shape
from pipeline.precision.attention import attention_products, range_of
from pipeline.precision.islands import classifier_of
from pipeline.precision.placement import board_of, placement_of
from pipeline.precision.placement.cost import paying
from pipeline.precision.placement.rules import Placement
from pipeline.precision.plan import NodePlan, PrecisionPlan
from pipeline.precision.quantise import decibels, weight_scales
from pipeline.request import Int8Options

NARROW = 16
# Signal to noise of a weight below which one scale for all of it costs more than the activations' own rounding does:
# a measured activation reaches 30 to 37 dB in INT8.  FP8 has 3 bits of mantissa, hence 31 dB at best.
LEAST_DB = {"int8": 30.0, "fp8": 25.0}


def plan_int8(
    graph: OnnxGraph, ranges: Ranges, rest: str = "fp32", options: Int8Options = Int8Options()
) -> PrecisionPlan:
    """One entry for every Conv, MatMul and Gemm: ``int8`` or ``fp8``, or `rest` with the reason.

    Raises DeployError when none of their inputs has a range: the ranges are those of another model.
    """
    placement, kind = placement_of(options.backend), options.kind
    classifier = classifier_of(graph)
    candidates = [node for node in graph.model.graph if node.op_type in ("Conv", "MatMul", "Gemm")]
    if candidates and not any(_input(node) in ranges.tensors for node in candidates):
        raise DeployError(
            f"ranges: got {len(ranges.tensors)} tensors, none of them is one of this model's; calibrate this model"
        )
    attention = _attentions(graph, ranges) if kind in placement.attention else frozenset()
    reasons = {
        node: _declined(node, ranges, classifier, options)
        or placement.refused(node, kind)
        or _lossy(node, placement, kind)
        for node in candidates
    }
    able = [node for node in candidates if not reasons[node]]
    judged = _judged(graph, able, rest, placement, options)
    plans = []
    for node in candidates:
        if node in attention:
            text = f"an attention whose products and softmax fuse in {kind} by {placement.source}"
            plans.append(NodePlan(output_name(node), node.op_type, kind, text))
            continue
        verdict = judged.get(output_name(node))
        reason = reasons[node] or ("" if verdict is None or verdict.pays else verdict.text)
        why = reason or _why(node, ranges, placement, kind, verdict)
        plans.append(
            NodePlan(
                output_name(node),
                node.op_type,
                rest if reason else kind,
                why,
                fine=bool(reason) or placement.fine(node),
            )
        )
    return PrecisionPlan(kind, tuple(plans), options.unsigned)


def _attentions(graph: OnnxGraph, ranges: Ranges) -> frozenset[ir.Node]:
    """The products of the attentions whose inputs have all been measured."""
    pairs = attention_products(graph.model)
    return frozenset(
        node
        for pair in pairs
        if all(range_of(value, ranges) is not None for node in pair for value in node.inputs)
        for node in pair
    )


def scale_axis(node: ir.Node, plan: PrecisionPlan) -> int | None:
    """Along which axis of its weight the scales lie, None where there is one for all."""
    return weight_axis(node) if plan.fine(output_name(node)) else None


@dataclass(frozen=True)
class _Verdict:
    pays: bool
    text: str


def _judged(
    graph: OnnxGraph, layers: Sequence[ir.Node], rest: str, placement: Placement, options: Int8Options
) -> dict[str, _Verdict]:
    """By first output: what 8 bits save there; {} where the target does not decide by cost."""
    if placement.epilogues is None:
        return {}
    board, kind = board_of(options.board or placement.board), options.kind
    if kind not in board.peaks:
        raise DeployError(f"precision {kind}: {board.name} has no tensor cores for it; use --precision fp16")
    verdicts: dict[str, _Verdict] = {}
    for item in paying(graph.model, layers, board, kind, rest, placement.epilogues):
        saved = f"{item.saved.bytes / 1e6:+.3g} MB and {1e3 * item.saved.ms:+.3g} us by the roofline of {board.name}"
        together = "" if len(item.group) == 1 else f" with {len(item.group) - 1} that share its input or feed it"
        for name in item.group:
            pays = name in item.layers
            text = f"{kind} saves {saved}{together}" if pays else f"{kind} would save {saved}{together}: not worth it"
            verdicts[name] = _Verdict(pays, text)
    return verdicts


def _scale_noise(node: ir.Node, placement: Placement, kind: str) -> float:
    """dB of its weight's quantisation, with the scales that `placement` gives it."""
    weight = constant(node.inputs[1])
    assert weight is not None, "only layers with constant weights are quantised"
    wide, axis = weight.astype(np.float32), weight_axis(node) if placement.fine(node) else None
    return decibels(wide, weight_scales(wide, axis, eight_bit=kind), axis, kind)


def _lossy(node: ir.Node, placement: Placement, kind: str) -> str:
    """Why one scale for the whole weight costs too much, where the target asks for that."""
    if placement.fine(node) or constant(node.inputs[1]) is None:
        return ""
    noise = _scale_noise(node, placement, kind)
    least = LEAST_DB[kind]
    return f"one scale for its weight leaves {noise:.3g} dB, fewer than {least:g}" if noise < least else ""


def _why(node: ir.Node, ranges: Ranges, placement: Placement, kind: str, verdict: _Verdict | None) -> str:
    fine = "a scale a channel" if placement.fine(node) else "one scale"
    noise = f"weight {_scale_noise(node, placement, kind):.3g} dB with {fine}"
    parts = [f"input {_input(node)} within {ranges.tensors[_input(node)].amax:.4g}", noise]
    return "; ".join(parts if verdict is None else [*parts, verdict.text])


def weight_axis(node: ir.Node) -> int:
    """Axis of the output channels in the constant operand."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and integer(node, "transB", 0) else -1


def _input(node: ir.Node) -> str:
    value = node.inputs[0]
    return "" if value is None else str(value.name)


def _declined(node: ir.Node, ranges: Ranges, classifier: Collection[str], options: Int8Options) -> str:
    weight = constant(node.inputs[1])
    if weight is None:
        return "both operands are activations: attention products stay in higher precision"
    if constant(node.inputs[0]) is not None:
        return "the constant is the first operand"
    if output_name(node) in options.skip:
        return "left out as asked"
    if output_name(node) in classifier:
        return "makes the logits"
    unfit = _conv_shape(node, weight, options) if node.op_type == "Conv" else _product_shape(node, weight)
    return unfit or _range(_input(node), ranges)


def _conv_shape(node: ir.Node, weight: NDArray[np.generic], options: Int8Options) -> str:
    group = integer(node, "group", 1)
    outputs, per_group, kernel = weight.shape[0], weight.shape[1], weight.shape[2:]
    inputs = per_group * group
    if group > 1 and per_group == 1:
        if not options.depthwise:
            return f"depthwise over {inputs} channels: bound by memory, not quantised unless asked"
        return "" if outputs % 8 == 0 else f"depthwise over {outputs} channels, not a multiple of 8"
    if group > 1 and per_group < NARROW and not (outputs % 8 == 0 and min(kernel) >= 3):
        return f"grouped with {per_group} channels a group and kernel {kernel}: no INT8 kernel gains there"
    for role, count in (("input", inputs), ("output", outputs)):
        if count < NARROW and count % 8:
            return f"{count} {role} channels: fewer than {NARROW} and not a multiple of 8"
    if group == 1 and min(inputs, outputs) < NARROW and (max(inputs, outputs) < NARROW or len({*kernel}) > 1):
        return f"{inputs} -> {outputs} channels with kernel {kernel}: no INT8 kernel gains there"
    return ""


def _product_shape(node: ir.Node, weight: NDArray[np.generic]) -> str:
    if weight.ndim != 2:
        return f"the constant has rank {weight.ndim}, expected a matrix"
    if node.op_type == "Gemm" and integer(node, "transA", 0):
        return "Gemm with a transposed activation"
    inner, outer = weight.shape[::-1] if weight_axis(node) == 0 else weight.shape
    if min(inner, outer) < NARROW:
        return f"{inner}x{outer} weights: narrower than {NARROW}"
    if math.prod((shape(node.outputs[0]) or (0, 0))[:-1]) == 1:
        return "a matrix-vector product: bound by memory"
    return ""


def _range(name: str, ranges: Ranges) -> str:
    measured = ranges.tensors.get(name)
    if measured is None:
        return f"no measured range for its input {name}"
    if not np.isfinite(measured.amax):
        return f"its input {name} has the range {measured.amax}"
    if measured.amax <= 0:
        return f"its input {name} was zero in every window: a scale would be a guess"
    return ""
