"""From a verified FP32 graph to a verified graph in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calib.ranges.ranges import Ranges, TensorRange
from engines.contract import Float32, Log
from engines.errors import DeployError
from engines.proof.agreement import Agreement, Gate, compare_logits
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.precision.attention import attention_products, range_of
from pipeline.precision.earn import quantised
from pipeline.precision.extremes import Bounds, carried_over, extremes, widened
from pipeline.precision.islands import plan_float
from pipeline.precision.lower_float import lower_float, prepare
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import EIGHT_BIT, PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.verify import verify_lowered
from pipeline.precision.views import Views
from pipeline.request import LowerOptions


@dataclass(frozen=True)
class Lowered:
    """report: the plans and what each step did, for report.json."""

    graph: OnnxGraph
    agreements: tuple[Agreement, ...]
    report: dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """A lowered graph, of which nothing is proven yet.  origin: the float graph that it has to agree with."""

    graph: OnnxGraph
    origin: OnnxGraph
    report: dict[str, Any]


Note = Callable[[str, str, Callable[[], OnnxGraph] | None], None]
"""(step, what happened, what makes the graph so far where its error is worth telling)"""


def lower(
    graph: OnnxGraph, precision: str, windows: Sequence[Float32], reference: Float32, gate: Gate, log: Log,
    ranges: Ranges | None = None, options: LowerOptions = LowerOptions(), views: Views = Views(),
    threshold: float | None = None,
) -> Lowered:  # fmt: skip
    """Plan, lower and verify.  reference: the FP32 logits (M, K, h, w) for the M `windows`.

    ranges: of this graph; half types need none, but are as wide as given ones.  threshold: `ModelSpec.threshold`.

    Raises GateError naming the first tensor that diverges, DeployError when INT8 is asked for without ranges.
    """
    if precision == "fp32" or options.kept:
        return Lowered(graph, (), {})

    def note(step: str, text: str, so_far: Callable[[], OnnxGraph] | None) -> None:
        error = "" if so_far is None else f"; mean |diff| {_error(so_far(), windows, reference):.3g}"
        log(step, f"{text}{error}")

    made = draft(graph, precision, windows=windows, ranges=ranges, options=options, note=note, views=views)
    agreements = verify_lowered(
        precision, made.graph, windows=windows, reference_name="the fp32 graph", reference=reference, gate=gate,
        origin=made.origin, stress=views.stress, threshold=threshold,
    )  # fmt: skip
    log(precision, f"every tensor rounded: {agreements[0]}")
    for agreement in agreements[1:]:
        log(agreement.step, f"every tensor rounded, variants of the sample in one: {agreement}")
    return Lowered(made.graph, agreements, made.report)


def draft(
    graph: OnnxGraph, precision: str, windows: Sequence[Float32], ranges: Ranges | None = None,
    options: LowerOptions = LowerOptions(), note: Note = lambda step, text, so_far: None, known: Bounds | None = None,
    views: Views = Views(),
) -> Draft:  # fmt: skip
    """Plan and lower: what `lower` verifies, and what ``auto`` measures, so that what is measured is what ships.

    windows: (1, 3, H, W) each, from which islands are planned.  known: the extremes of the graph without its INT8 part,
    in place of measuring those that it has once it is smoothed; for what is tried but not shipped.  Raises DeployError.
    """
    if precision == "fp32":
        return Draft(graph, graph, {})
    if precision in EIGHT_BIT:
        options = replace(options, int8=replace(options.int8, kind=precision))
        return _int8(graph, windows, ranges=ranges, options=options, note=note, known=known, views=views)
    origin = prepare(graph, precision)
    reached = widened(widened(extremes(origin, windows), views.bounds), _bounds(ranges))
    lowered, plan = to_float(origin, precision, reached, options)
    note(precision, plan.summary(), None)
    return Draft(lowered, origin, {"plan": plan.to_json()})


def _bounds(ranges: Ranges | None) -> Bounds:
    return {} if ranges is None else {name: (item.low, item.high) for name, item in ranges.tensors.items()}


def to_float(
    origin: OnnxGraph, precision: str, ranges: Bounds, options: LowerOptions
) -> tuple[OnnxGraph, PrecisionPlan]:
    """ranges: (low, high) of every float tensor."""
    plan = plan_float(origin, precision, ranges, options.island)
    plan = plan if options.islands else plan.with_everything()
    return lower_float(origin, plan), plan


def _int8(
    graph: OnnxGraph, windows: Sequence[Float32], ranges: Ranges | None, options: LowerOptions, note: Note,
    known: Bounds | None, views: Views,
) -> Draft:  # fmt: skip
    kind = options.int8.kind
    if ranges is None:
        raise DeployError(f"precision {kind}: got no ranges, expected measured ones; give --calib RANGES.json")
    current, measured = prepare_int8(graph, options.rest), ranges
    seen = list(options.photographs) or list(windows)
    if kind == "fp8":
        measured = _with_attentions(current, measured, seen)
    plan = plan_int8(current, measured, options.rest, options.int8)
    if not any(node.precision == kind for node in plan.nodes):
        reasons = sorted({node.reason for node in plan.nodes}) or ["no Conv, MatMul or Gemm"]
        raise DeployError(
            f"precision {kind}: nothing qualifies ({'; '.join(reasons[:3])}); use --precision {options.rest}"
        )
    report: dict[str, Any] = {"plan": plan.to_json()}
    note(kind, plan.summary(), lambda: lower_int8(current, plan, measured, options.rest))
    if kind == "int8":
        lowered, current, measured, earned = quantised(
            current, plan, measured, () if known is not None else seen, options=options,
            log=lambda step, text: note(step, text, None),
        )  # fmt: skip
        report |= earned
    else:  # a floating point: its step grows with the value, so that there is no outlier to smooth and no mean error
        lowered = lower_int8(current, plan, measured, options.rest)
    if options.rest != "fp32":
        reached = widened(extremes(current, windows) if known is None else known, views.bounds)
        reached = carried_over(lowered, widened(reached, _bounds(measured)))
        lowered, rest = to_float(lowered, options.rest, reached, options)
        report["rest"] = rest.to_json()
        note("rest", rest.summary(), None)
    return Draft(lowered, current, report)


def _with_attentions(graph: OnnxGraph, ranges: Ranges, windows: Sequence[Float32]) -> Ranges:
    """With what the attentions' products read, which calibration does not: it is of the layers with weights."""
    products = [node for pair in attention_products(graph.model) for node in pair]
    missing = {str(v.name) for node in products for v in node.inputs if v is not None and range_of(v, ranges) is None}
    if not missing:
        return ranges
    found = extremes(graph, windows)
    seen = {
        name: TensorRange(max(abs(low), abs(high)), low, high, rms=0.0)
        for name, (low, high) in found.items() if name in missing and max(abs(low), abs(high)) > 0
    }  # fmt: skip
    return replace(ranges, tensors={**ranges.tensors, **seen})


def prepare_int8(graph: OnnxGraph, rest: str) -> OnnxGraph:
    """At the opset at which Q/DQ take scales in `rest`."""
    return prepare(graph, rest, qdq=True)


def _error(graph: OnnxGraph, windows: Sequence[Float32], reference: Float32) -> float:
    """Mean |difference| of the logits of the first window."""
    got = run_onnx(graph, list(windows[:1]))
    mean = compare_logits("int8", got, "the fp32 graph", reference[:1]).mean_abs
    return float(mean or 0.0)
