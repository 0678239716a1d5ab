"""The part of a build between the exact graph and the engine: calibrate, decide, lower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from calib.data.scenes import render_folder
from calib.ranges.ranges import Ranges
from calib.ranges.windows import CalibrationSet, draw_windows
from engines.contract import Backend, BuildConfig, Float32, Log
from engines.errors import DeployError, GateError
from engines.guard.ledger import temporary_folder
from pipeline.checkpoints.sources import Source
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.budget import HELD_OUT, scorer
from pipeline.precision.calibrate import DEFAULT_WINDOWS, CalibrateRequest, collect_ranges
from pipeline.precision.lower import Lowered, lower
from pipeline.precision.observe import Effort
from pipeline.precision.search import Workbench, search
from pipeline.request import BuildRequest

QUANTISED = frozenset({"int8", "auto"})  # what ranges are for
SCENES = range(1, 9)  # seeds of what the demo model is calibrated on; scene 0 is what builds are verified on
HELD_OUT_SCENES = range(100, 100 + HELD_OUT)


def lower_as_asked(
    request: BuildRequest, source: Source, backend: Backend, graph: OnnxGraph, inputs: Sequence[Float32],
    reference: Float32, config: BuildConfig, log: Log,
) -> tuple[str, Lowered]:  # fmt: skip
    """The precision, decided where it was ``auto``, and the verified lowered graph.  Raises DeployError, GateError.

    config: of the engines that ``auto`` measures, but for their precision.
    """
    options, report = request.lowering, {}
    half = half_of(backend) if options.rest == "auto" else options.rest
    if options.rest == "auto":
        options = replace(options, rest=rest_of(backend))
    refused = backend.refuses_rest(options.rest) if request.precision in QUANTISED else None
    if refused:
        raise DeployError(f"--rest {options.rest}: {refused}")
    plans: list[tuple[str, tuple[str, ...]]] = [(request.precision, tuple(options.int8.skip))]
    ranges: Ranges | None = None
    if request.precision in QUANTISED:
        with _photographs(request) as folders:
            calibration, held_out = _draw(request, *folders, log)
            ranges = _ranges(request, source, graph, calibration, log)
            if request.precision == "auto":
                windows = [window for _, window in held_out.inputs(source.spec, request.tiling)] if held_out else []
                if not windows and request.budget.dataset is None:
                    log("warning", "no photographs: plans are judged on the windows that the build is verified on")
                bench = _bench(
                    request, source, backend=backend, windows=windows or list(inputs), config=config, half=half
                )
                decision = search(graph, ranges, options=options, bench=bench, log=log)
                plans, report = [(decision.precision, decision.skip), *decision.others], decision.report
    if ranges is not None:
        report = {**report, "calibration": {k: v for k, v in ranges.to_json().items() if k != "tensors"}}
    for index, (precision, skip) in enumerate(plans):
        chosen = replace(options, int8=replace(options.int8, skip=skip))
        try:
            lowered = lower(
                graph,
                precision,
                windows=inputs,
                reference=reference,
                gate=request.gate(precision),
                log=log,
                ranges=ranges,
                options=chosen,
            )
        except GateError as error:
            if index + 1 == len(plans):
                raise
            log("auto", f"{precision} fails its gate ({error}); next {plans[index + 1][0]}")
        else:
            return precision, replace(lowered, report={**report, **lowered.report})
    raise AssertionError("there is always a plan")


def _bench(
    request: BuildRequest, source: Source, backend: Backend, windows: list[Float32], config: BuildConfig, half: str
) -> Workbench:
    expected, budget = source.logits(windows), request.budget
    score = scorer(
        budget, source.spec, tiling=request.tiling, windows=windows, reference=expected, max_pixels=request.max_pixels
    )
    return Workbench(
        backend,
        config,
        windows=windows,
        reference=expected,
        score=score,
        max_drop=budget.max_drop,
        labelled=budget.dataset is not None,
        half=half,
        threshold=source.spec.threshold,
    )


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
def _photographs(request: BuildRequest) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """Folders to calibrate on and, where they are others, to hold plans against.

    The demo model, which comes without, gets scenes rendered for the time.
    """
    if request.photographs or request.model != "demo":
        yield request.photographs, ()
        return
    size = (request.tiling.window_h, request.tiling.window_w)
    with temporary_folder() as folder:
        yield (
            [str(render_folder(folder / "calibration", SCENES, *size))],
            [str(render_folder(folder / "held-out", HELD_OUT_SCENES, *size))],
        )


def _draw(
    request: BuildRequest, photographs: Sequence[str], others: Sequence[str], log: Log
) -> tuple[CalibrationSet | None, CalibrationSet | None]:
    """Windows to calibrate on, and other ones to hold plans against; None where there are no photographs."""
    if not photographs:
        return None, None
    count = DEFAULT_WINDOWS if others or request.precision != "auto" else DEFAULT_WINDOWS + HELD_OUT
    drawn = draw_windows(photographs, request.tiling, count=count, seed=0, max_pixels=request.max_pixels)
    log("dataset", f"{len(drawn.paths)} image(s), sha256 {drawn.sha256[:12]}; {len(drawn.places)} window(s)")
    for note in drawn.notes:
        log("warning", note)
    if others:
        return drawn, draw_windows(others, request.tiling, count=HELD_OUT, seed=0, max_pixels=request.max_pixels)
    if request.precision != "auto":
        return drawn, None
    total = len(drawn.places)
    if total < 4:
        log("warning", f"{total} window(s) are too few to hold any out: plans are judged on the same ones")
        return drawn, drawn
    kept_back = min(HELD_OUT, total // 4)
    held = drawn.places[:: total // kept_back][:kept_back]
    rest = tuple(place for place in drawn.places if place not in held)
    return replace(drawn, places=rest), replace(drawn, places=held)


def _ranges(
    request: BuildRequest, source: Source, graph: OnnxGraph, calibration: CalibrationSet | None, log: Log
) -> Ranges | None:
    """Those given, if they are this graph's, or measured now; None where ``auto`` has nothing to measure on."""
    if request.ranges is not None:
        request.ranges.require(graph_sha256(graph.model))
        return request.ranges
    if calibration is None:
        if request.precision == "auto":
            return None
        raise DeployError("precision int8: got no calibration, expected photographs or measured ranges; give --calib")
    with temporary_folder() as folder:
        wanted = CalibrateRequest(
            request.model, request.photographs, folder / "ranges.json", request.tiling, threads=request.threads
        )
        return collect_ranges(graph, calibration, spec=source.spec, request=wanted, log=log, effort=Effort())
