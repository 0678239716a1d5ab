"""Which nodes may not be lowered to FP16 or BF16, from measured ranges.

A node stays FP32 when a tensor that it reads or writes leaves the safe range of the type, when one of its constants
would be lost, when it computes statistics over many values (normalisations, softmax, reductions), or when it makes
the logits.  BF16 has the exponent of FP32, so only accuracy asks for islands there; the same ones are kept, since on
the CPUs that have BF16 they cost next to nothing (measured: 2 % of SegFormer-B0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.errors import DeployError
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import MOVES, computed, constant, integer, is_float, opset, output_name, shape
from pipeline.graph.types import FLOATS, Float, main_variable_allows
from pipeline.precision.norms import written_out
from pipeline.precision.plan import UNDEFINED, NodePlan, PrecisionPlan
from pipeline.request import IslandOptions

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
_CHUNK = 1 << 22  # values at a time: a weight may have half a gigabyte
_LOST = 2.0**-8  # relative error of a constant; rounding alone gives at most 2^-9 in bf16 and 2^-12 in fp16


def plan_float(
    graph: OnnxGraph,
    target: str,
    ranges: Mapping[str, tuple[float, float]],
    options: IslandOptions = IslandOptions(),
) -> PrecisionPlan:
    """ranges: (low, high) of every float tensor that a node makes, and of the input.

    Raises DeployError when a range is missing: a guess would defeat the purpose.
    """
    kind = FLOATS[target]
    classifier = frozenset() if options.wide_sums else classifier_of(graph)
    version, norms = opset(graph.model), written_out(graph.model)
    places = _places(graph) if target == "bf16" else frozenset()
    plans = []
    for node in graph.model.graph:
        if not any(is_float(value) for value in node.outputs):
            continue
        if main_variable_allows(node, version, kind):
            reason = _reason(node, kind, ranges, classifier, options)
            if not reason and output_name(node) in norms:
                reason = "part of a normalisation that is written out: mean and variance in fp32"
            if not reason and output_name(node) in places:
                reason = (
                    "makes the places that GridSample reads at, or reads there: 8 bits of them are parts of a pixel"
                )
        else:
            reason = f"{UNDEFINED} {kind.name} {node.op_type} at opset {version}"
        room = None if reason else _headroom(node, kind, ranges)
        plans.append(NodePlan(output_name(node), node.op_type, "fp32" if reason else target, reason, headroom=room))
    return PrecisionPlan(target, _join_moves(graph, plans))


def _places(graph: OnnxGraph) -> frozenset[str]:
    """First outputs of every GridSample, and of the nodes that make its coordinates, back to the layers that offsets
    come from.

    They lie in -1..1: half a step of bf16 is the 512th part of a map of any size.
    """
    samples = [node for node in graph.model.graph if node.op_type == "GridSample"]
    found = {output_name(node) for node in samples}
    pending = [node.inputs[1] for node in samples]
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if node is None or node.op_type in _LINEAR or output_name(node) in found or not is_float(value):
            continue
        found.add(output_name(node))
        pending.extend(computed(node))
    return frozenset(found)


def classifier_of(graph: OnnxGraph) -> frozenset[str]:
    """First outputs of the nodes that make the logits: the last convolution or product, and all that follows it."""
    last = graph.model.graph.outputs[0].producer()
    found: dict[str, ir.Node] = {}
    pending = [last]
    while pending:
        node = pending.pop()
        if node is None or output_name(node) in found:
            continue
        found[output_name(node)] = node
        if node.op_type not in _LINEAR:
            pending.extend(value.producer() for value in computed(node))
    linear = {name for name, node in found.items() if node.op_type in _LINEAR}
    # An Add of a skip connection, or several heads, would pull in whole branches; then only the last node counts.
    return frozenset(found) if len(linear) == 1 or last is None else frozenset({output_name(last)} | linear)


def _reason(
    node: ir.Node,
    kind: Float,
    ranges: Mapping[str, tuple[float, float]],
    classifier: frozenset[str],
    options: IslandOptions,
) -> str:
    beyond = _out_of_range(node, kind, ranges, options.margin) or _lost_constant(node, kind)
    if beyond:
        return beyond
    if output_name(node) in classifier:
        return "makes the logits: half-precision steps there flip labels at class boundaries, and it is cheap"
    if node.op_type in STATISTICS and not (options.wide_sums and _sums_wide(node)):
        return _statistics(node, kind, ranges)
    return ""


def _sums_wide(node: ir.Node) -> bool:
    """A LayerNormalization whose statistics are fp32 by its own account."""
    return node.op_type == "LayerNormalization" and integer(node, "stash_type", 1) == ir.DataType.FLOAT


def _out_of_range(node: ir.Node, kind: Float, ranges: Mapping[str, tuple[float, float]], margin: float) -> str:
    for value in (*computed(node), *node.outputs):
        if not is_float(value):
            continue
        name = str(value.name)
        if name not in ranges:
            raise DeployError(
                f"ranges: got none for tensor {name!r}, expected every tensor of the graph; measure again"
            )
        peak = max(abs(bound) for bound in ranges[name])
        if not peak <= kind.largest / margin:
            return f"{name} reaches {peak:.4g}, {kind.name} holds {kind.largest:.5g} (margin {margin:g})"
        if 0 < peak < kind.smallest:
            return f"{name} never exceeds {peak:.2g}, below the smallest normal {kind.name} {kind.smallest:.2g}"
    return ""


def _headroom(node: ir.Node, kind: Float, ranges: Mapping[str, tuple[float, float]]) -> float | None:
    names = (str(value.name) for value in (*computed(node), *node.outputs) if is_float(value))
    peak = max((abs(bound) for name in names for bound in ranges[name]), default=0.0)
    return float(f"{kind.largest / peak:.4g}") if peak else None


def _lost_constant(node: ir.Node, kind: Float) -> str:
    if node.op_type in ("Resize", "QuantizeLinear"):
        return ""
    for value in node.inputs:
        array = constant(value)
        if value is None or array is None or array.dtype != np.float32:
            continue
        error = _rounding_error(array.reshape(-1), kind)
        if not np.isfinite(error):
            return f"constant {value.name} holds {np.abs(array).max():.4g}, {kind.name} holds {kind.largest:.5g}"
        if error > _LOST:
            lost = f"would lose {100 * error:.1f} % to underflow"
            return f"constant {value.name} (largest {np.abs(array).max():.2g}) {lost}"
    return ""


def _rounding_error(values: NDArray[np.generic], kind: Float) -> float:
    """Norm of the error over the norm of the `values`; infinite or NaN where one of them is when it is rounded."""
    norm = error = 0.0
    for start in range(0, values.size, _CHUNK):
        exact = values[start : start + _CHUNK].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = values[start : start + _CHUNK].astype(kind.dtype).astype(np.float64)
            norm += float(exact @ exact)
            error += float(np.square(rounded - exact).sum())
    return math.sqrt(error / norm) if norm else error


def _statistics(node: ir.Node, kind: Float, ranges: Mapping[str, tuple[float, float]]) -> str:
    text, value = f"{node.op_type}: {STATISTICS[node.op_type]} in fp32", node.inputs[0]
    assert value is not None
    peak = max(abs(bound) for bound in ranges.get(str(value.name), (0.0, 0.0)))
    if node.op_type == "LayerNormalization":
        count = (shape(value) or (1,))[-1]
        bound = count * peak * peak
        verdict = "beyond" if bound > kind.largest else "within"
        return f"{text}; |x| up to {peak:.4g}, sum of {count} squares up to {bound:.4g}, {verdict} {kind.name}"
    return f"{text}; |x| up to {peak:.4g}"


def _join_moves(graph: OnnxGraph, plans: list[NodePlan]) -> tuple[NodePlan, ...]:
    """A node that only moves values stays in FP32 between FP32 nodes: two casts fewer, and nothing is rounded."""
    result = {plan.output: plan for plan in plans}

    def all_fp32(nodes: Sequence[ir.Node]) -> bool:
        planned = [result.get(output_name(node)) for node in nodes]
        return bool(planned) and all(plan is not None and plan.precision == "fp32" for plan in planned)

    for node in reversed(graph.model.graph):  # consumers first, so that chains of moves are settled in one pass
        plan = result.get(output_name(node))
        if plan is None or node.op_type not in MOVES or plan.precision == "fp32":
            continue
        source = _source(node)
        while source is not None and source.op_type in MOVES:
            source = _source(source)
        readers = [reader for value in node.outputs for reader in value.consumers()]
        if source is not None and all_fp32([source]) and all_fp32(readers):
            result[plan.output] = NodePlan(plan.output, plan.op, "fp32", "only moves values between fp32 nodes")
    return tuple(result[plan.output] for plan in plans)


def _source(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0]
    return None if value is None else value.producer()
