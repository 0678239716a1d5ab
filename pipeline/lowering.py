"""The part of a build between the exact graph and the engine: calibrate, decide, lower."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calib.ranges import Ranges
from calib.windows import draw_windows
from engines.base import Backend, Float32
from engines.errors import DeployError
from pipeline.auto import HELD_OUT, HELD_OUT_SEED, scorer
from pipeline.calibrate import CalibrateRequest, collect_ranges, draw
from pipeline.fingerprint import graph_sha256
from pipeline.graph import OnnxGraph
from pipeline.observe import Effort
from pipeline.precision.lower import Log, Lowered, lower
from pipeline.precision.search import Workbench, search
from pipeline.scenes_folder import render_folder
from pipeline.sources import Source

if TYPE_CHECKING:
    from pipeline.build import BuildRequest

QUANTISED = frozenset({"int8", "auto"})  # what ranges are for
SCENES = range(1, 9)  # seeds of what the demo model is calibrated on; scene 0 is what builds are verified on
HELD_OUT_SCENES = range(100, 100 + HELD_OUT)


def lower_as_asked(
    request: BuildRequest, source: Source, backend: Backend, graph: OnnxGraph, inputs: Sequence[Float32],
    reference: Float32, log: Log,
) -> tuple[str, Lowered]:  # fmt: skip
    """The precision, decided where it was ``auto``, and the verified lowered graph.  Raises DeployError, GateError."""
    precision, options, report = request.precision, request.lowering, {}
    if options.rest == "auto":
        options = replace(options, rest=rest_of(backend))
    with _photographs(request) as (calibration, held_out):
        ranges = _ranges(request, source, graph, calibration, log) if precision in QUANTISED else None
        if precision == "auto":
            windows = _held_out(request, source, held_out) or list(inputs)
            expected = source.logits(windows)
            score = scorer(request.budget, source.spec, request.tiling, windows, expected)
            bench = Workbench(backend, request.threads, windows, expected, score, request.budget.max_drop)
            decision = search(graph, ranges, options, bench, log)
            precision, report = decision.precision, decision.report
            options = replace(options, int8=replace(options.int8, skip=decision.skip))
    if ranges is not None:
        report = {**report, "calibration": {k: v for k, v in ranges.to_json().items() if k != "tensors"}}
    lowered = lower(graph, precision, inputs, reference, request.gate(precision), log, ranges, options)
    return precision, replace(lowered, report={**report, **lowered.report})


def rest_of(backend: Backend) -> str:
    """What an INT8 graph computes everything else in: a half type that this device computes natively, or fp32."""
    native = (p for p in ("bf16", "fp16") if backend.supports(p) is None and backend.remark(p) is None)
    return next(native, "fp32")


@contextmanager
def _photographs(request: BuildRequest) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Folders to calibrate on and to hold plans against; for the demo, which comes without, rendered for the time."""
    if request.photographs or request.model != "demo" or request.precision not in QUANTISED:
        yield request.photographs, request.photographs
        return
    size = (request.tiling.window_h, request.tiling.window_w)
    with tempfile.TemporaryDirectory() as folder:
        yield (
            (str(render_folder(Path(folder) / "calibration", SCENES, *size)),),
            (str(render_folder(Path(folder) / "held-out", HELD_OUT_SCENES, *size)),),
        )


def _ranges(
    request: BuildRequest, source: Source, graph: OnnxGraph, photographs: Sequence[str], log: Log
) -> Ranges | None:
    """Those given, if they are this graph's, or measured now; None where ``auto`` has nothing to measure on."""
    if request.ranges is not None:
        request.ranges.require(graph_sha256(graph.model))
        return request.ranges
    if not photographs:
        if request.precision == "auto":
            return None
        raise DeployError("precision int8: got no calibration, expected photographs or measured ranges; give --calib")
    with tempfile.TemporaryDirectory() as folder:
        wanted = CalibrateRequest(
            request.model, photographs, Path(folder) / "ranges.json", request.tiling, threads=request.threads
        )
        return collect_ranges(graph, draw(wanted, log), source.spec, wanted, log, Effort())


def _held_out(request: BuildRequest, source: Source, photographs: Sequence[str]) -> list[Float32]:
    """Windows to hold plans against, drawn apart from those of the calibration; none without photographs."""
    if not photographs:
        return []
    drawn = draw_windows(list(photographs), request.tiling, HELD_OUT, HELD_OUT_SEED)
    return [window for _, window in drawn.inputs(source.spec, request.tiling)]
