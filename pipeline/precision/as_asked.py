"""The part of a build between the exact graph and the engine: calibrate, and decide what is lowered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from calib.data.scenes import render_folder
from calib.ranges.ranges import Ranges
from calib.ranges.split import Split, photographs
from engines.contract import Backend, BuildConfig, Float32, Log
from engines.errors import DeployError
from engines.guard.ledger import temporary_folder
from engines.segmenter import Segmenter
from pipeline.checkpoints.sources import Source
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.budget import Jury, panels
from pipeline.precision.calibrate import CalibrateRequest, collect_ranges, draw
from pipeline.precision.observe import Effort
from pipeline.precision.search import Candidate, Workbench, search
from pipeline.request import BuildRequest, LowerOptions

QUANTISED = frozenset({"int8", "auto"})  # what ranges are for
SCENES = range(1, 9)  # seeds of what the demo model is calibrated on; scene 0 is what builds are verified on
HELD_OUT_SCENES = range(100, 108)  # half of them to choose on, half to report on


@dataclass(frozen=True)
class Asked:
    """plans: what to build, the first that passes.  jury: what an ``auto`` build is measured on, None of another.

    options, ranges: for `lower`.  report: what was calibrated and decided.
    """

    plans: tuple[Candidate, ...]
    options: LowerOptions
    ranges: Ranges | None = None
    jury: Jury | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def options_of(self, plan: Candidate) -> LowerOptions:
        return replace(self.options, int8=replace(self.options.int8, skip=plan.skip))


def as_asked(
    request: BuildRequest, source: Source, backend: Backend, graph: OnnxGraph, inputs: Sequence[Float32],
    config: BuildConfig, log: Log,
) -> Asked:  # fmt: skip
    """The precision, decided where it was ``auto``, with the ranges that it needs.  Raises DeployError.

    inputs: the windows that the build is verified on.  config: of the engines that ``auto`` measures, but for their
    precision.
    """
    options = request.lowering
    half = half_of(backend) if options.rest == "auto" else options.rest
    if options.rest == "auto":
        options = replace(options, rest=rest_of(backend))
    plan = Candidate(request.precision, request.precision, tuple(options.int8.skip))
    if request.precision not in QUANTISED:
        return Asked((plan,), options)
    refused = backend.refuses_rest(options.rest)
    if refused:
        raise DeployError(f"--rest {options.rest}: {refused}")
    with _photographs(request) as division:
        ranges = _ranges(request, source, graph, division, log)
        report = {} if ranges is None else {"calibration": _without_tensors(ranges)}
        if request.precision == "int8":
            return Asked((plan,), options, ranges=ranges, report=report)
        seen = () if ranges is None else ranges.photographs
        found = panels(request, source, graph, division, inputs, seen, log)
    max_drop = request.budget.max_drop
    bench = Workbench(
        backend, config, windows=found.windows, panel=found.selection, max_drop=max_drop, islands=inputs,
        report=found.report, half=half, threshold=source.spec.threshold,
        segmenter=lambda session: Segmenter.on_host(session, source.spec, request.tiling),
    )  # fmt: skip
    decision = search(graph, ranges, options=options, bench=bench, log=log)
    jury = Jury(found.report or found.selection, decision.before, max_drop, fresh=found.report is not None)
    report |= decision.report
    report["search"]["images"] = found.record
    return Asked(decision.plans, options, ranges=ranges, jury=jury, report=report)


def _without_tensors(ranges: Ranges) -> dict[str, Any]:
    return {key: value for key, value in ranges.to_json().items() if key != "tensors"}


def rest_of(backend: Backend) -> str:
    """What an INT8 graph computes everything else in: as `half_of`, or fp32 where the SDK cannot mix the two."""
    half = half_of(backend)
    return half if backend.refuses_rest(half) is None else "fp32"


def half_of(backend: Backend) -> str:
    """A half type that this device computes natively, or fp32.

    FP16 first on a GPU, where every kernel has it and it is the finer one; BF16 first on a CPU, where it is the faster.
    """
    halves = ("fp16", "bf16") if backend.on_gpu else ("bf16", "fp16")
    native = (p for p in halves if backend.supports(p) is None and backend.remark(p) is None)
    return next(native, "fp32")


@contextmanager
def _photographs(request: BuildRequest) -> Iterator[Split | None]:
    """What to calibrate on, and what to hold plans against.

    The demo model, which comes without, gets scenes rendered for the time.
    """
    if request.photographs is not None or request.model != "demo":
        yield request.photographs
        return
    size = (request.tiling.window_h, request.tiling.window_w)
    with temporary_folder() as folder:
        scenes = render_folder(folder / "calibration", SCENES, *size)
        others = render_folder(folder / "held-out", HELD_OUT_SCENES, *size)
        yield Split(photographs([str(scenes)])[0], photographs([str(others)])[0])


def _ranges(
    request: BuildRequest, source: Source, graph: OnnxGraph, division: Split | None, log: Log
) -> Ranges | None:  # fmt: skip
    """Those given, if they are this graph's, or measured now; None where ``auto`` has nothing to measure on."""
    if request.ranges is not None:
        request.ranges.require(graph_sha256(graph.model))
        return request.ranges
    if division is None:
        if request.precision == "auto":
            return None
        raise DeployError("precision int8: got no calibration, expected photographs or measured ranges; give --calib")
    with temporary_folder() as folder:
        wanted = CalibrateRequest(
            request.model, (), folder / "ranges.json", request.tiling, threads=request.threads,
            max_pixels=request.max_pixels,
        )  # fmt: skip
        chosen = draw(wanted, log, division)
        return collect_ranges(graph, chosen, spec=source.spec, request=wanted, log=log, effort=Effort())
