"""From a verified FP32 graph to a verified graph in the precision that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calib.ranges.ranges import Ranges
from engines.contract import Float32, Log
from engines.errors import DeployError
from engines.proof.agreement import Agreement, Gate, compare_logits
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.precision.bias import correct_bias
from pipeline.precision.extremes import carried_over, extremes
from pipeline.precision.islands import plan_float
from pipeline.precision.lower_float import lower_float, prepare
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.smooth import smooth
from pipeline.precision.verify import verify_lowered
from pipeline.request import LowerOptions


@dataclass(frozen=True)
class Lowered:
    """report: the plans and what each step did, for report.json."""

    graph: OnnxGraph
    agreements: tuple[Agreement, ...]
    report: dict[str, Any]


def lower(
    graph: OnnxGraph, precision: str, windows: Sequence[Float32], reference: Float32, gate: Gate, log: Log,
    ranges: Ranges | None = None, options: LowerOptions = LowerOptions(),
) -> Lowered:  # fmt: skip
    """Plan, lower and verify.  reference: the FP32 logits (M, K, h, w) for the M `windows`.

    Raises GateError naming the first tensor that diverges, DeployError when INT8 is asked for without ranges.
    """
    if precision == "fp32":
        return Lowered(graph, (), {})
    if precision == "int8":
        return _to_int8(graph, windows, reference=reference, gate=gate, log=log, ranges=ranges, options=options)
    origin = prepare(graph, precision)
    lowered, plan = to_float(origin, precision, extremes(origin, windows), options)
    agreement = verify_lowered(
        precision,
        lowered,
        windows=windows,
        reference_name="the fp32 graph",
        reference=reference,
        gate=gate,
        origin=origin,
    )
    log(precision, f"{plan.summary()}; every tensor rounded: {agreement}")
    return Lowered(lowered, (agreement,), {"plan": plan.to_json()})


def to_float(
    origin: OnnxGraph, precision: str, ranges: Mapping[str, tuple[float, float]], options: LowerOptions
) -> tuple[OnnxGraph, PrecisionPlan]:
    """ranges: (low, high) of every float tensor."""
    plan = plan_float(origin, precision, ranges, options.island)
    plan = plan if options.islands else plan.with_everything()
    return lower_float(origin, plan), plan


def _to_int8(
    graph: OnnxGraph, windows: Sequence[Float32], reference: Float32, gate: Gate, log: Log,
    ranges: Ranges | None, options: LowerOptions,
) -> Lowered:  # fmt: skip
    if ranges is None:
        raise DeployError("precision int8: got no ranges, expected measured ones; give --calib RANGES.json")
    origin = prepare_int8(graph, options.rest)
    plan = plan_int8(origin, ranges, options.rest, options.int8)
    if not any(node.precision == "int8" for node in plan.nodes):
        reasons = sorted({node.reason for node in plan.nodes}) or ["no Conv, MatMul or Gemm"]
        raise DeployError(f"precision int8: nothing qualifies ({'; '.join(reasons[:3])}); use --precision fp32")
    report: dict[str, Any] = {"plan": plan.to_json()}
    plain = lower_int8(origin, plan, ranges, options.rest)
    first = _error(plain, windows, reference)
    log("int8", f"{plan.summary()}; plain: mean |diff| {first:.3g}")
    current, measured, scaled = origin, ranges, plain
    if options.smooth:
        current, measured, smoothed = smooth(current, plan, measured)
        scaled = lower_int8(current, plan, measured, options.rest)
        report["smoothing"] = [asdict(item) for item in smoothed]
        done = sum(not item.declined for item in smoothed)
        log("smooth", f"{done} of {len(smoothed)} LayerNorms; mean |diff| {_error(scaled, windows, reference):.3g}")
    if options.bias:
        current, corrected = correct_bias(current, plan, measured, options.rest)
        scaled = lower_int8(current, plan, measured, options.rest)
        report["bias_correction"] = [asdict(item) for item in corrected]
        done = sum(not item.declined for item in corrected)
        log("bias", f"{done} of {len(corrected)} layers; mean |diff| {_error(scaled, windows, reference):.3g}")
    lowered = scaled
    if options.rest != "fp32":
        known = carried_over(scaled, extremes(current, windows))
        lowered, rest = to_float(scaled, options.rest, known, options)
        report["rest"] = rest.to_json()
        log("rest", rest.summary())
    agreement = verify_lowered(
        "int8",
        lowered,
        windows=windows,
        reference_name="the fp32 graph",
        reference=reference,
        gate=gate,
        origin=current,
    )
    log("int8", f"every tensor rounded: {agreement}")
    return Lowered(lowered, (agreement,), report)


def prepare_int8(graph: OnnxGraph, rest: str) -> OnnxGraph:
    """At the opset at which Q/DQ take scales in `rest`."""
    return prepare(graph, rest, qdq=True)


def _error(graph: OnnxGraph, windows: Sequence[Float32], reference: Float32) -> float:
    """Mean |difference| of the logits of the first window."""
    got = run_onnx(graph, list(windows[:1]))
    mean = compare_logits("int8", got, "the fp32 graph", reference[:1]).mean_abs
    return float(mean or 0.0)
