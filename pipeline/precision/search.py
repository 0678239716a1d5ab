"""`--precision auto`: the fastest precision, and within INT8 the fastest set of layers, that stays inside a budget.

Nothing is chosen by the name of an operator: what each block of layers costs when it alone is quantised, and what it
gains on this machine's backend, is measured; the blocks are then taken by cost per gain, as many as the budget allows,
and whole plans are measured against each other.  Every plan is the graph that would ship.  It is inside the budget when
the interval of its loss is, and faster when it is in a sign test over rounds (pipeline/evaluation/statistics.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from calib.ranges.ranges import Ranges
from engines.contract import Backend, BuildConfig, Float32, Log, Session
from engines.errors import DeployError
from engines.roofline.boards import Board
from engines.segmenter import Segmenter
from engines.tiling.core import labels_of
from pipeline.evaluation.statistics import Counts, Interval, is_faster, loss_interval
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.tail.ending import DecoderTail
from pipeline.precision.blocks import Block, blocks_of
from pipeline.precision.budget import Panel
from pipeline.precision.extremes import extremes
from pipeline.precision.lower import draft, prepare_int8
from pipeline.precision.plan import EIGHT_BIT
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.planned import planned, rounds_ms
from pipeline.precision.prefix import longest, ordered
from pipeline.precision.views import Views
from pipeline.request import LowerOptions
from pipeline.side_by_side import compiled

NOISE = 0.01  # of the time: a smaller gain of one block may be chance
WORTH = 0.02  # of the time: a coarser precision must gain at least this over a finer one
BLOCK_ROUNDS, FINAL_ROUNDS = 8, 15


@dataclass(frozen=True)
class Candidate:
    """What is lowered and shipped.  skip: layers left out of INT8."""

    name: str
    precision: str
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A whole plan.  times: ms of one window, by round.  loss: points against fp32.  verdict: chosen, or why not."""

    name: str
    times: tuple[float, ...]
    loss: Interval
    verdict: str = ""

    @property
    def ms(self) -> float:
        return statistics.median(self.times)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "ms": self.ms, "loss": asdict(self.loss), "verdict": self.verdict}


@dataclass(frozen=True)
class BlockTrial:
    """One block, quantised alone.  gain_ms: against everything in the rest's type.  label_loss: percent of labels that
    change beyond those of that type, and changed against it.  error: rms of the logits' change over their rms.
    """

    name: str
    layers: int
    gain_ms: float
    label_loss: float
    changed: float
    error: float
    verdict: str


@dataclass(frozen=True)
class Decision:
    """plans: the chosen one, and the next best inside the budget should the gate or the last measurement refuse it.

    report: everything that was measured.  before: fp32's counts on the panel that the shipped engine is measured on.
    """

    plans: tuple[Candidate, ...]
    report: dict[str, Any]
    before: Counts


@dataclass(frozen=True)
class Workbench:
    """What plans are measured with.  windows: (1, 3, H, W) each, to time and to compare blocks on.

    panel: what plans are scored on.  report: what the shipped engine will be, None for the same: fp32 is counted here.
    max_drop: how many points may be lost against fp32.  islands: the windows that lowering plans its islands on.
    config: of every engine but for its precision.  segmenter: around a session.
    half: the type of the plan without INT8, fp32 for none; "" takes the one that INT8 leaves the rest in.
    threshold: `ModelSpec.threshold`.  views: what else lowering looks at.
    board: whose roofline stands in for the clock, and emulation for engines, where these cannot run; else None.
    ending: where engines end, None at the logits.
    """

    backend: Backend
    config: BuildConfig
    windows: Sequence[Float32]
    panel: Panel
    max_drop: float
    segmenter: Callable[[Session], Segmenter]
    islands: Sequence[Float32]
    report: Panel | None = None
    half: str = ""
    threshold: float | None = None
    views: Views = field(default_factory=Views)
    board: Board | None = None
    ending: DecoderTail | None = None

    def agreement(self, logits: Float32, wanted: Float32) -> float:
        """Share of equal labels, of logits (M, K, h, w) each."""
        return float((labels_of(logits, self.threshold) == labels_of(wanted, self.threshold)).mean())

    def compiled(self, graph: OnnxGraph, precision: str) -> AbstractContextManager[Session]:
        if self.board is not None:
            return planned(graph, self.backend, self.board, self.ending)
        return compiled(graph, self.backend, replace(self.config, precision=precision))

    def count(self, session: Session) -> Counts:
        return self.panel.count(self.segmenter(session))


def search(graph: OnnxGraph, ranges: Ranges | None, options: LowerOptions, bench: Workbench, log: Log) -> Decision:
    """Measure, and decide.  Without ranges INT8 is not tried.  Raises DeployError."""
    if bench.board is not None:
        log("auto", f"{bench.backend.only_builds()}: the roofline of {bench.board.name} stands in for times, and "
            "emulation for engines")  # fmt: skip
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        plans: dict[str, Candidate] = {}

        def open_plan(plan: Candidate, lowered: OnnxGraph) -> Session:
            plans[plan.name] = plan
            sessions[plan.name] = stack.enter_context(bench.compiled(lowered, plan.precision))
            return sessions[plan.name]

        base = open_plan(Candidate("fp32", "fp32"), graph)
        before = bench.count(base)
        told = before if bench.report is None else bench.report.count(bench.segmenter(base))
        exact = _logits(base, bench.windows)
        half = bench.half or options.rest
        if half != "fp32":
            opened = open_plan(
                Candidate(half, half),
                draft(graph, half, bench.islands, options=options, ranges=ranges, views=bench.views).graph,
            )
            base = opened if half == options.rest else base
        report: dict[str, Any] = {"max_drop": bench.max_drop, "blocks": [], "sets": []}
        report["board"] = None if bench.board is None else bench.board.name
        if ranges is None:
            log("auto", "int8 is not tried: no photographs or ranges were given (--calib)")
        elif (lowering := _quantisable(graph, ranges, options=options, bench=bench, log=log)) is not None:
            blocks = _sensitivity(lowering, base, exact, bench, log)
            taken, sets = _widest(lowering, blocks, before, bench, log)
            report |= {"blocks": [asdict(block) for block in blocks], "sets": sets}
            everything = tuple(range(len(blocks)))
            for name, which in {"int8 where it gains": taken, "int8": everything}.items():
                if which and (name == "int8" or len(which) < len(everything)):
                    open_plan(Candidate(name, "int8", lowering.left_out(which)), lowering.graph(which))
        times = rounds_ms(list(sessions.values()), bench.windows[0], FINAL_ROUNDS)
        trials = [
            Trial(name, tuple(measured), loss_interval(before, bench.count(sessions[name]), bench.panel.points))
            for name, measured in zip(sessions, times, strict=True)
        ]
    chosen, trials = _choose(trials, bench.max_drop)
    for trial in trials:
        log("auto", f"{trial.name}: {_ms(trial.ms)} ms, loses {trial.loss}; {trial.verdict}")
    report["trials"] = [trial.to_json() for trial in trials]
    inside = sorted((trial for trial in trials if trial.loss.high <= bench.max_drop), key=lambda trial: trial.ms)
    names = [chosen, *(trial.name for trial in inside if trial.name != chosen)]
    return Decision(tuple(plans[name] for name in names), {"search": report}, told)


def _quantisable(graph: OnnxGraph, ranges: Ranges, options: LowerOptions, bench: Workbench, log: Log) -> _Int8 | None:
    """What INT8 plans are made from; None, and a line in the log, where no layer qualifies."""
    try:
        return _Int8(graph, ranges, options=options, windows=bench.islands, views=bench.views)
    except DeployError as error:
        log("auto", f"int8 is not tried: {error}")
        return None


def _choose(trials: Sequence[Trial], max_drop: float) -> tuple[str, list[Trial]]:
    """The fastest inside the budget; `trials` run from the finest, which is the measure, to the coarsest."""
    best = trials[0]
    for trial in trials[1:]:
        if trial.loss.high <= max_drop and is_faster(trial.times, best.times, WORTH):
            best = trial
    judged = []
    for trial in trials:
        if trial.name == best.name:
            verdict = "chosen, the fastest inside the budget"
        elif trial.loss.high > max_drop and trial is not trials[0]:
            verdict = f"may lose more than the budget of {max_drop:g}"
        elif is_faster(best.times, trial.times):
            verdict = f"{best.name} is {trial.ms / best.ms:.2f}x as fast"
        else:
            verdict = f"not surely {100 * WORTH:.0f} % faster than {best.name}"
        judged.append(replace(trial, verdict=verdict))
    return best.name, judged


class _Int8:
    """INT8 graphs of one model with some of its blocks quantised: those that would ship."""

    def __init__(
        self, graph: OnnxGraph, ranges: Ranges, options: LowerOptions, windows: Sequence[Float32], views: Views
    ) -> None:  # fmt: skip
        self._graph, self._ranges = prepare_int8(graph, options.rest), ranges
        self._options, self._windows, self._views = options, windows, views
        plan = plan_int8(self._graph, ranges, options.rest, options.int8)
        self.blocks: tuple[Block, ...] = blocks_of(self._graph, plan)
        if not self.blocks:
            raise DeployError("precision int8: nothing qualifies; use --precision bf16 or fp32")
        self._known = {} if options.rest == "fp32" else extremes(self._graph, windows)

    def left_out(self, blocks: Collection[int]) -> tuple[str, ...]:
        """The layers that stay out of INT8 with these blocks in it."""
        out = (layer for index, each in enumerate(self.blocks) if index not in blocks for layer in each.layers)
        return (*self._options.int8.skip, *sorted(out))

    def qualifies(self, index: int) -> bool:
        """Whether a block has 8-bit layers when it is alone: some pay only together with others."""
        options = replace(self._options.int8, skip=self.left_out([index]))
        plan = plan_int8(self._graph, self._ranges, self._options.rest, options)
        return any(node.precision in EIGHT_BIT for node in plan.nodes)

    def graph(self, blocks: Collection[int], quick: bool = False) -> OnnxGraph:
        """quick: with islands from ranges before smoothing, measured once: good enough to order blocks by."""
        known = self._known if quick else None
        options = replace(self._options, int8=replace(self._options.int8, skip=self.left_out(blocks)))
        return draft(
            self._graph, "int8", self._windows, ranges=self._ranges, options=options, known=known, views=self._views
        ).graph  # fmt: skip


def _sensitivity(
    lowering: _Int8, base: Session, exact: Float32, bench: Workbench, log: Log
) -> list[BlockTrial]:  # fmt: skip
    """Each block alone: what it costs and what it gains.  exact: the logits of fp32."""
    plain = _logits(base, bench.windows)
    loss = 100 * (1 - bench.agreement(plain, exact))
    trials = []
    for index, block in enumerate(lowering.blocks):
        if not lowering.qualifies(index):
            verdict = "stays in higher precision: alone it would not pay"
            trials.append(
                BlockTrial(
                    block.name, len(block.layers), gain_ms=0.0, label_loss=0.0, changed=0.0, error=0.0, verdict=verdict
                )
            )  # fmt: skip
            log("block", f"{block.name}: {verdict}")
            continue
        with bench.compiled(lowering.graph([index], quick=True), "int8") as session:
            before, after = rounds_ms([base, session], bench.windows[0], BLOCK_ROUNDS)
            logits = _logits(session, bench.windows)
        lost, changed = (100 * (1 - bench.agreement(logits, wanted)) for wanted in (exact, plain))
        error = float(np.sqrt(np.mean((logits - plain) ** 2) / np.mean(plain**2)))
        whole = statistics.median(before)
        gain = statistics.median(b - a for b, a in zip(before, after, strict=True))
        pays = gain >= NOISE * whole and is_faster(after, before)
        verdict = "gains" if pays else f"stays in higher precision: gains {_ms(gain)} of {_ms(whole)} ms"
        trials.append(
            BlockTrial(
                block.name, len(block.layers), gain_ms=gain, label_loss=lost - loss, changed=changed, error=error,
                verdict=verdict,
            )
        )  # fmt: skip
        log(
            "block",
            f"{block.name}: {_ms(gain, '+')} ms, {changed:.3f} % of labels change, error {error:.2g}; {verdict}",
        )
    return trials


def _widest(
    lowering: _Int8, blocks: Sequence[BlockTrial], before: Counts, bench: Workbench, log: Log
) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """The blocks that gain, as many of them as the budget allows, and every set that was tried."""
    sets: list[dict[str, Any]] = []

    def holds(which: tuple[int, ...]) -> bool:
        with bench.compiled(lowering.graph(which), "int8") as session:
            loss = loss_interval(before, bench.count(session), bench.panel.points)
        inside = loss.high <= bench.max_drop
        sets.append({"blocks": [blocks[index].name for index in which], "loss": asdict(loss), "inside": inside})
        log("blocks", f"{len(which)} of {len(blocks)}: loses {loss}; {'inside' if inside else 'beyond'} the budget")
        return inside

    gains = [block.gain_ms if block.verdict == "gains" else 0.0 for block in blocks]
    return longest(ordered([block.changed for block in blocks], gains), gains, holds), sets


def _ms(value: float, sign: str = "") -> str:
    """A floor may be a hundredth of a millisecond."""
    return f"{value:{sign}.{'1f' if abs(value) >= 1 else '3g'}}"


def _logits(session: Session, windows: Sequence[Float32]) -> Float32:
    return np.concatenate([session.run(window).copy() for window in windows])
