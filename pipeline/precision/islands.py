"""Which nodes may not be lowered to FP16 or BF16, from measured ranges.

A node stays FP32 when a tensor that it reads or writes leaves the safe range of the type, when one of its constants
would be lost, when it computes statistics over many values (normalisations, softmax, reductions), or when it makes
the logits.  BF16 has the exponent of FP32, so only accuracy asks for islands there; the same ones are kept, since on
the CPUs that have BF16 they cost next to nothing (measured: 2 % of SegFormer-B0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from engines.errors import DeployError
from pipeline.graph.view import MOVES, GraphView
from pipeline.precision.plan import UNDEFINED, NodePlan, PrecisionPlan
from pipeline.precision.types import FLOATS, Float, main_variable_allows

STATISTICS = {
    "LayerNormalization": "mean and variance",
    "InstanceNormalization": "mean and variance",
    "GroupNormalization": "mean and variance",
    "RMSNormalization": "mean square",
    "LpNormalization": "norm",
    "Softmax": "sum of exponentials",
    "LogSoftmax": "sum of exponentials",
    **{
        f"Reduce{kind}": "reduction" for kind in ("Mean", "Sum", "L1", "L2", "SumSquare", "LogSum", "LogSumExp", "Prod")
    },
    "CumSum": "running sum",
}
_LINEAR = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_LOST = 2.0**-8  # relative error of a constant; rounding alone gives at most 2^-9 in bf16 and 2^-12 in fp16


@dataclass(frozen=True)
class IslandOptions:
    """margin: how many times larger than measured an activation may get before it leaves the type's range."""

    margin: float = 4.0


def plan_float(
    shown: GraphView,
    target: str,
    ranges: Mapping[str, tuple[float, float]],
    options: IslandOptions = IslandOptions(),
) -> PrecisionPlan:
    """ranges: (low, high) of every float tensor that a node makes, and of the input.

    Raises DeployError when a range is missing: a guess would defeat the purpose.
    """
    kind = FLOATS[target]
    classifier = classifier_of(shown)
    plans = []
    for node in shown.nodes:
        if not any(shown.is_float(name) for name in node.output):
            continue
        reason = _reason(shown, node, kind, ranges, classifier, options)
        plans.append(NodePlan(node.output[0], node.op_type, "fp32" if reason else target, reason))
    return PrecisionPlan(target, _join_moves(shown, target, plans))


def classifier_of(shown: GraphView) -> frozenset[str]:
    """First outputs of the nodes that make the logits: the last convolution or product, and all that follows it."""
    found: set[str] = set()
    pending = [shown.output]
    while pending:
        node = shown.producer.get(pending.pop())
        if node is None or node.output[0] in found:
            continue
        found.add(node.output[0])
        if node.op_type not in _LINEAR:
            pending.extend(shown.reads(node))
    linear = {name for name in found if shown.producer[name].op_type in _LINEAR}
    # An Add of a skip connection, or several heads, would pull in whole branches; then only the last node counts.
    return frozenset(found) if len(linear) == 1 else frozenset({shown.producer[shown.output].output[0]} | linear)


def _reason(
    shown: GraphView, node: onnx.NodeProto, kind: Float, ranges: Mapping[str, tuple[float, float]],
    classifier: frozenset[str], options: IslandOptions,
) -> str:  # fmt: skip
    if not main_variable_allows(node, shown, kind):
        return f"{UNDEFINED} {kind.name} {node.op_type} at opset {shown.opset}"
    beyond = _out_of_range(shown, node, kind, ranges, options.margin) or _lost_constant(shown, node, kind)
    if beyond:
        return beyond
    if node.output[0] in classifier:
        return "makes the logits: half-precision steps there flip labels at class boundaries, and it is cheap"
    if node.op_type in STATISTICS:
        return _statistics(shown, node, kind, ranges)
    return ""


def _out_of_range(
    shown: GraphView, node: onnx.NodeProto, kind: Float, ranges: Mapping[str, tuple[float, float]], margin: float
) -> str:
    for name in (*shown.reads(node), *node.output):
        if not name or not shown.is_float(name):
            continue
        if name not in ranges:
            raise DeployError(
                f"ranges: got none for tensor {name!r}, expected every tensor of the graph; measure again"
            )
        peak = max(abs(value) for value in ranges[name])
        if not peak <= kind.largest / margin:
            return f"{name} reaches {peak:.4g}, {kind.name} holds {kind.largest:.5g} (margin {margin:g})"
        if 0 < peak < kind.smallest:
            return f"{name} never exceeds {peak:.2g}, below the smallest normal {kind.name} {kind.smallest:.2g}"
    return ""


def _lost_constant(shown: GraphView, node: onnx.NodeProto, kind: Float) -> str:
    for name in node.input:
        value = shown.constants.get(name)
        if value is None or value.dtype != np.float32 or node.op_type in ("Resize", "QuantizeLinear"):
            continue
        exact = value.astype(np.float64)
        norm = float(np.linalg.norm(exact))
        with np.errstate(over="ignore"):
            rounded = value.astype(kind.dtype).astype(np.float64)
        if not np.isfinite(rounded).all():
            return f"constant {name} holds {np.abs(exact).max():.4g}, {kind.name} holds {kind.largest:.5g}"
        error = float(np.linalg.norm(rounded - exact)) / norm if norm else 0.0
        if error > _LOST:
            return f"constant {name} (largest {np.abs(exact).max():.2g}) would lose {100 * error:.1f} % to underflow"
    return ""


def _statistics(shown: GraphView, node: onnx.NodeProto, kind: Float, ranges: Mapping[str, tuple[float, float]]) -> str:
    text = f"{node.op_type}: {STATISTICS[node.op_type]} in fp32"
    name = node.input[0]
    peak = max(abs(value) for value in ranges.get(name, (0.0, 0.0)))
    if node.op_type == "LayerNormalization":
        count = shown.shapes[name][-1] if shown.shapes.get(name) else 1
        bound = count * peak * peak
        verdict = "beyond" if bound > kind.largest else "within"
        return f"{text}; |x| up to {peak:.4g}, sum of {count} squares up to {bound:.4g}, {verdict} {kind.name}"
    return f"{text}; |x| up to {peak:.4g}"


def _join_moves(shown: GraphView, target: str, plans: list[NodePlan]) -> tuple[NodePlan, ...]:
    """A node that only moves values stays in FP32 between FP32 nodes: two casts fewer, and nothing is rounded."""
    precision = {plan.output: plan.precision for plan in plans}

    def all_fp32(names: list[str]) -> bool:
        return bool(names) and all(precision.get(name) == "fp32" for name in names)

    result: dict[str, NodePlan] = {plan.output: plan for plan in plans}
    for plan in reversed(plans):  # consumers first, so that chains of moves are settled in one pass
        node = shown.producer[plan.output]
        if node.op_type not in MOVES or plan.precision == "fp32":
            continue
        readers = [reader.output[0] for name in node.output for reader in shown.consumers.get(name, [])]
        source = shown.producer.get(node.input[0])
        while source is not None and source.op_type in MOVES:
            source = shown.producer.get(source.input[0])
        if source is not None and all_fp32([source.output[0]]) and all_fp32(readers):
            precision[plan.output] = "fp32"
            result[plan.output] = NodePlan(plan.output, plan.op, "fp32", "only moves values between fp32 nodes")
    return tuple(result[plan.output] for plan in plans)
