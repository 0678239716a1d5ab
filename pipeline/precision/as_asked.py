"""The part of a build between the exact graph and the engine: calibrate, and decide what is lowered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from calib.data.scenes import render_folder
from calib.ranges.ranges import Ranges
from calib.ranges.split import Split, photographs
from calib.ranges.windows import draw_from
from engines.contract import Backend, BuildConfig, Float32, Log, UInt8
from engines.errors import DeployError
from engines.guard.ledger import temporary_folder
from engines.proof.stress import stress_windows
from engines.segmenter import Segmenter
from pipeline.checkpoints import DEMOS
from pipeline.checkpoints.sources import Source
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.tail import ending_for
from pipeline.precision.budget import Jury, labelled_jury, panels
from pipeline.precision.calibrate import CalibrateRequest, collect_ranges, draw
from pipeline.precision.forms import carried
from pipeline.precision.leave import expanded
from pipeline.precision.observe import Effort
from pipeline.precision.placement import aimed, board_of, placement_of
from pipeline.precision.plan import EIGHT_BIT
from pipeline.precision.search import Candidate, Workbench, search
from pipeline.precision.views import Views, look
from pipeline.request import BuildRequest, LowerOptions

QUANTISED = frozenset({*EIGHT_BIT, "auto"})  # what ranges are for
JUDGED_ON, LEARNED_ON = 4, 16  # windows on which SmoothQuant and bias are judged, and roundings learned
SCENES = range(1, 9)  # seeds of what the demo model is calibrated on; scene 0 is what builds are verified on
VIEWED = 8  # photographs' windows on which every tensor's bounds are taken; those of the layers' inputs are of all
HELD_OUT_SCENES = range(100, 108)  # half of them to choose on, half to report on


@dataclass(frozen=True)
class Asked:
    """plans: what to build, the first that passes.  jury: what the engine is measured on; None where gates decide.

    options, ranges, views: for `lower`.  report: what was calibrated and decided.
    """

    plans: tuple[Candidate, ...]
    options: LowerOptions
    ranges: Ranges | None = None
    views: Views = field(default_factory=Views)
    jury: Jury | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def options_of(self, plan: Candidate) -> LowerOptions:
        return replace(self.options, int8=replace(self.options.int8, skip=plan.skip))


def as_asked(
    request: BuildRequest, source: Source, backend: Backend, stages: Sequence[OnnxGraph], inputs: Sequence[Float32],
    config: BuildConfig, log: Log, image: UInt8,
) -> Asked:  # fmt: skip
    """The precision, decided where it was ``auto``, with the ranges that it needs.  Raises DeployError.

    stages: the graph that ranges are measured of, and what forms made of it; the last one is lowered.
    inputs: the windows of `image`, which the build is verified on.  config: of the engines that ``auto`` measures, but
    for their precision.
    """
    graph, options = stages[-1], _checked(request, backend, request.lowering)
    if request.precision == "fp32" or options.kept:
        return Asked((Candidate(request.precision, request.precision),), options)
    half = half_of(backend) if options.rest == "auto" else options.rest
    if backend.on_gpu and request.precision != "bf16" and half == "fp16":  # of BF16's 8 bits logits would be too coarse
        options = replace(options, island=replace(options.island, wide_sums=True))
    if options.rest == "auto":
        options = replace(options, rest=rest_of(backend))
    refused = backend.refuses_rest(options.rest) if request.precision in QUANTISED else None
    if refused:
        raise DeployError(f"--rest {options.rest}: {refused}")
    with _photographs(request) if request.precision in QUANTISED else nullcontext(request.photographs) as division:
        ranges = _ranges(request, source, stages[0], division, log)
        ranges = None if ranges is None else carried(ranges, stages)
        options = replace(options, photographs=_seen(division, request, source))
        rounded = request.precision if request.precision not in QUANTISED else options.rest
        stress = stress_windows(image, source.spec, request.tiling)
        views = look(graph, rounded, stress, _viewed(request, source, division))
        if ranges is not None and options.int8.skip:
            options = replace(options, int8=replace(options.int8, skip=expanded(graph, ranges, options)))
        plan = Candidate(request.precision, request.precision, tuple(options.int8.skip))
        report = {} if ranges is None else {"calibration": _without_tensors(ranges)}
        asked = Asked((plan,), options, ranges=ranges, views=views, report=report)
        seen = () if ranges is None else ranges.photographs
        if request.precision != "auto":
            if request.budget.dataset is None:
                return asked
            jury = labelled_jury(request, source, graph, division, seen, backend=backend, config=config, log=log)
            return replace(asked, jury=jury)
        found = panels(request, source, graph, division, inputs, seen, log)
    max_drop = request.budget.max_drop
    bench = Workbench(
        backend, config, windows=found.windows, panel=found.selection, max_drop=max_drop, islands=inputs,
        report=found.report, half=half, threshold=source.spec.threshold, views=views,
        board=board_of(options.int8.board) if backend.only_builds() else None,
        ending=ending_for(backend, graph, request.tail),
        segmenter=lambda session: Segmenter.on_host(session, source.spec, request.tiling),
    )  # fmt: skip
    decision = search(graph, ranges, options=options, bench=bench, log=log)
    jury = Jury(found.report or found.selection, decision.before, max_drop, fresh=found.report is not None)
    report = {**report, **decision.report}
    report["search"]["images"] = found.record
    return replace(asked, plans=decision.plans, jury=jury, report=report)


def _viewed(request: BuildRequest, source: Source, division: Split | None) -> list[Float32]:
    """Windows (1, 3, h, w) of some photographs that may be calibrated on."""
    if division is None:
        return []
    some = draw_from(
        division.calibration,
        request.tiling,
        count=VIEWED,
        max_pixels=request.max_pixels,
        wanted=request.wanted(source.spec),
    )
    return [window for _, window in some.inputs(source.spec, request.tiling)]


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


def _seen(division: Split | None, request: BuildRequest, source: Source) -> tuple[Float32, ...]:
    """Windows of what is not held out, evenly over its images; of a precision that is calibrated."""
    if division is None or request.precision not in QUANTISED:
        return ()
    most = LEARNED_ON if request.lowering.rounding == "learned" else JUDGED_ON
    chosen = draw_from(
        division.calibration, request.tiling, count=most, seed=1, max_pixels=request.max_pixels,
        wanted=request.wanted(source.spec),
    )  # fmt: skip
    return tuple(window for _, window in chosen.inputs(source.spec, request.tiling))


def _checked(request: BuildRequest, backend: Backend, options: LowerOptions) -> LowerOptions:
    """With a place for what is learned.  Raises DeployError on what INT8 cannot be asked for here."""
    kind = request.precision if request.precision in EIGHT_BIT else "int8"
    if options.int8.board:
        board_of(options.int8.board)
        if placement_of(backend.name).epilogues is None:
            raise DeployError(f"--board: {backend.name} is timed, not judged by a roofline; leave it out")
    options = replace(options, int8=aimed(options.int8, backend, kind) or options.int8)
    if options.int8.unsigned and not backend.zero_points:
        raise DeployError(f"--unsigned: {backend.name} takes INT8 activations of zero point 0 alone; leave it out")
    if options.rounding == "nearest":
        return options
    if request.precision not in QUANTISED:
        raise DeployError(f"--rounding learned: got precision {request.precision}, expected int8 or auto")
    if request.photographs is None and request.model not in DEMOS:
        raise DeployError("--rounding learned: got no photographs, expected some to learn on; give --calib DATASET")
    return replace(options, state=request.output.with_name(f".{request.output.name}.rounding.npz"))


@contextmanager
def _photographs(request: BuildRequest) -> Iterator[Split | None]:
    """What to calibrate on, and what to hold plans against.

    The demo models, which come without, get scenes rendered for the time.
    """
    if request.photographs is not None or request.model not in DEMOS:
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
    """Those given, if they are this graph's, or measured now; None where nothing needs them, or ``auto`` has nothing to
    measure on.
    """
    if request.ranges is not None:
        request.ranges.require(graph_sha256(graph.model))
        return request.ranges
    if request.precision not in QUANTISED or (division is None and request.precision == "auto"):
        return None
    if division is None:
        raise DeployError(
            f"precision {request.precision}: got no calibration, expected photographs or measured ranges; give --calib"
        )
    with temporary_folder() as folder:
        wanted = CalibrateRequest(
            request.model, (), folder / "ranges.json", request.tiling, threads=request.threads,
            max_pixels=request.max_pixels,
        )  # fmt: skip
        chosen = draw(wanted, log, request.wanted(source.spec), division)
        return collect_ranges(graph, chosen, spec=source.spec, request=wanted, log=log, effort=Effort())
