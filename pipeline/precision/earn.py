"""INT8 with what earns its place: SmoothQuant, learned rounding and bias correction, each where it lowers an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from calib.ranges.ranges import Ranges
from engines.contract import Float32, Log
from engines.proof.agreement import compare_logits
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.precision.bias import correct_bias
from pipeline.precision.evidence import gather
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.quantise import NEAREST, Int8
from pipeline.precision.rounding import learn_rounding
from pipeline.precision.smooth import smooth
from pipeline.request import LowerOptions

Error = Callable[[OnnxGraph], float]


def quantised(
    origin: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, windows: Sequence[Float32], options: LowerOptions,
    log: Log, error: Error | None = None,
) -> tuple[OnnxGraph, OnnxGraph, Ranges, dict[str, Any]]:  # fmt: skip
    """(the Q/DQ graph, the float graph that it was lowered from, its ranges, for the report).

    windows: (1, 3, h, w) each, to judge all on; with none SmoothQuant and bias correction are kept unjudged, for
    what is tried but not shipped.  error: of a graph's logits, in place of their mean |difference| on held windows.
    Each of the three is kept as a whole only if it lowers that too: what helps every layer may not help them together.
    """
    if not windows:
        return _unjudged(origin, plan, ranges, options)
    error = error or _error_on(origin, windows[3::4][:2] or windows[:2])
    best = _Best(origin, ranges, NEAREST, lower_int8(origin, plan, ranges, options.rest), error=math.inf)
    if not (options.smooth or options.bias or options.rounding == "learned"):
        return best.lowered, origin, ranges, {}
    best = replace(best, error=error(best.lowered))
    report: dict[str, Any] = {}
    evidence = gather(origin, plan, windows)
    rest, where = options.rest, f"on {evidence.windows} window(s)"

    def tried(step: str, trial: _Best, done: int, of: int) -> _Best:
        trial = replace(trial, lowered=lower_int8(trial.graph, plan, trial.ranges, rest, trial.learned))
        trial = replace(trial, error=error(trial.lowered))
        kept = trial.error < best.error
        change = f"mean |diff| {best.error:.3g} -> {trial.error:.3g}{'' if kept else ', so that none is kept'}"
        log(step.partition("_")[0], f"{done} of {of} layers {where}; {change}")
        report[step] = {"kept": kept, "before": best.error, "after": trial.error}
        return trial if kept else best

    if options.smooth:
        graph, moved, smoothed = smooth(origin, plan, ranges, stored=rest, evidence=evidence)
        done = sum(not item.declined for item in smoothed)
        if done:
            best = tried("smoothing", replace(best, graph=graph, ranges=moved), done, len(smoothed))
            evidence = evidence if best.graph is origin else gather(best.graph, plan, windows)
        report["smoothing"] = report.get("smoothing", {}) | {"layers": [asdict(item) for item in smoothed]}
    if options.rounding == "learned":
        learned, rounded = learn_rounding(best.graph, plan, best.ranges, evidence, rest, state=options.state, log=log)
        best = tried("rounding", replace(best, learned=learned), len(learned), len(rounded))
        report["rounding"]["layers"] = [asdict(item) for item in rounded]
    if options.bias:
        graph, corrected = correct_bias(
            best.graph, plan, best.ranges, rest, evidence=evidence, learned=best.learned
        )  # fmt: skip
        done = sum(not item.declined for item in corrected)
        if done:
            best = tried("bias_correction", replace(best, graph=graph), done, len(corrected))
        report["bias_correction"] = report.get("bias_correction", {}) | {"layers": [asdict(c) for c in corrected]}
    return best.lowered, best.graph, best.ranges, report


def _unjudged(
    origin: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, options: LowerOptions
) -> tuple[OnnxGraph, OnnxGraph, Ranges, dict[str, Any]]:
    graph = origin
    if options.smooth:
        graph, ranges, _ = smooth(graph, plan, ranges)
    if options.bias:
        graph, _ = correct_bias(graph, plan, ranges, options.rest)
    return lower_int8(graph, plan, ranges, options.rest), graph, ranges, {}


def _error_on(origin: OnnxGraph, windows: Sequence[Float32]) -> Error:
    """Mean |difference| of a graph's logits from those of `origin`."""
    reference = run_onnx(origin, list(windows))

    def error(graph: OnnxGraph) -> float:
        return float(compare_logits("int8", run_onnx(graph, list(windows)), "the fp32 graph", reference).mean_abs or 0)

    return error


@dataclass(frozen=True)
class _Best:
    """What is kept so far.  graph: in float.  lowered: with Q/DQ.  error: of its logits."""

    graph: OnnxGraph
    ranges: Ranges
    learned: Mapping[str, Int8]
    lowered: OnnxGraph
    error: float
