"""`--precision auto`: the fastest precision, and within INT8 the fastest set of layers, that stays inside a budget.

Nothing is chosen by the name of an operator: what each block of layers costs when it alone is quantised, and what it
gains on this machine's backend, is measured; then whole plans are measured again against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from calib.ranges.ranges import Ranges
from engines.contract import Backend, BuildConfig, Float32, Log, Session
from engines.errors import DeployError
from engines.tiling.core import labels_of
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.blocks import Block, blocks_of
from pipeline.precision.extremes import carried_over, extremes
from pipeline.precision.lower import prepare_int8, to_float
from pipeline.precision.lower_float import prepare
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.smooth import smooth
from pipeline.request import LowerOptions
from pipeline.side_by_side import compiled, median_ms

NOISE = 0.01  # of the time: a smaller gain of one block may be chance
WORTH = 0.02  # of the time: a coarser precision must gain at least this over a finer one
FINAL_ROUNDS = 15

Score = Callable[[Session], float]


@dataclass(frozen=True)
class Trial:
    """A whole plan.  ms: of one window.  cost: points lost against fp32.  verdict: chosen, or why not."""

    name: str
    ms: float
    cost: float
    verdict: str = ""


@dataclass(frozen=True)
class BlockTrial:
    """One block, quantised alone.  gain_ms: against everything in the rest's type.  label_loss: percent of labels that
    change beyond those of that type.  error: rms of the logits' change over their rms.
    """

    name: str
    layers: int
    gain_ms: float
    label_loss: float
    error: float
    verdict: str


@dataclass(frozen=True)
class Decision:
    """precision and skip (layers left out of INT8) for `lower`; report: everything that was measured.

    others: the next best inside the budget, (precision, skip) each, should the gate refuse the first.
    """

    precision: str
    skip: tuple[str, ...]
    report: dict[str, Any]
    others: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Workbench:
    """What plans are measured with.  windows: held out, (1, 3, H, W) each; reference: fp32 logits (M, K, h, w).

    score: of a session, in points of 100: mIoU, or percent of labels equal to the reference's.  max_drop: how many of
    them may be lost against fp32.  labelled: whether the score is mIoU.  config: of every engine but for its precision.
    half: the type of the plan without INT8, fp32 for none; "" takes the one that INT8 leaves the rest in.
    threshold: `ModelSpec.threshold`.
    """

    backend: Backend
    config: BuildConfig
    windows: Sequence[Float32]
    reference: Float32
    score: Score
    max_drop: float
    labelled: bool = False
    half: str = ""
    threshold: float | None = None

    def agreement(self, logits: Float32) -> float:
        """Share of labels that are the reference's."""
        wanted = labels_of(self.reference, self.threshold)
        return float((labels_of(logits, self.threshold) == wanted).mean())

    def compiled(self, graph: OnnxGraph, precision: str) -> AbstractContextManager[Session]:
        return compiled(graph, self.backend, replace(self.config, precision=precision))


def search(graph: OnnxGraph, ranges: Ranges | None, options: LowerOptions, bench: Workbench, log: Log) -> Decision:
    """Measure, and decide.  Without ranges INT8 is not tried.  Raises DeployError."""
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}

        def open_plan(name: str, lowered: OnnxGraph, precision: str) -> Session:
            sessions[name] = stack.enter_context(bench.compiled(lowered, precision))
            return sessions[name]

        base = open_plan("fp32", graph, "fp32")
        half = bench.half or options.rest
        if half != "fp32":
            opened = open_plan(half, _half(graph, half, bench.windows[:1], options), half)
            base = opened if half == options.rest else base
        skips: dict[str, tuple[str, ...]] = {}
        if ranges is None:
            log("auto", "int8 is not tried: no photographs or ranges were given (--calib)")
            blocks: list[BlockTrial] = []
        elif (lowering := _quantisable(graph, ranges, options=options, bench=bench, log=log)) is None:
            blocks = []
        else:
            blocks, kept = _sensitivity(lowering, base, bench, log)
            everything = tuple(layer for block in lowering.blocks for layer in block.layers)
            for name, layers in {**_mixed(kept, everything), "int8": everything}.items():
                skips[name] = tuple(sorted(set(everything) - set(layers)))
                open_plan(name, lowering.graph(layers), "int8")
        scores = {name: bench.score(session) for name, session in sessions.items()}
        times = dict(zip(sessions, median_ms(list(sessions.values()), bench.windows[0], FINAL_ROUNDS), strict=True))
        trials = [Trial(name, times[name], scores["fp32"] - scores[name]) for name in sessions]
    chosen, trials = _choose(trials, bench.max_drop)
    for trial in trials:
        log("auto", f"{trial.name}: {trial.ms:.1f} ms, {trial.cost:.2f} points lost; {trial.verdict}")
    report = {"blocks": [asdict(block) for block in blocks], "trials": [asdict(trial) for trial in trials]}
    plans = {trial.name: ("int8" if trial.name in skips else trial.name, skips.get(trial.name, ())) for trial in trials}
    inside = sorted((trial for trial in trials if trial.cost <= bench.max_drop), key=lambda trial: trial.ms)
    others = tuple(plans[trial.name] for trial in inside if trial.name != chosen)
    return Decision(*plans[chosen], {"search": {"max_drop": bench.max_drop, **report}}, others)


def _quantisable(graph: OnnxGraph, ranges: Ranges, options: LowerOptions, bench: Workbench, log: Log) -> _Int8 | None:
    """What INT8 plans are made from; None, and a line in the log, where no layer qualifies."""
    try:
        return _Int8(graph, ranges, options, bench.windows[:1])
    except DeployError as error:
        log("auto", f"int8 is not tried: {error}")
        return None


def _mixed(kept: Sequence[Block], everything: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The plan of only those blocks that gain, unless that is none or all of them."""
    layers = tuple(layer for block in kept for layer in block.layers)
    return {"int8 where it gains": layers} if 0 < len(layers) < len(everything) else {}


def _choose(trials: Sequence[Trial], max_drop: float) -> tuple[str, list[Trial]]:
    """The fastest inside the budget; `trials` run from the finest to the coarsest, which must be worth it."""
    best = trials[0]
    for trial in trials[1:]:
        if trial.cost <= max_drop and trial.ms < (1 - WORTH) * best.ms:
            best = trial
    judged = []
    for trial in trials:
        if trial.name == best.name:
            verdict = "chosen, the fastest inside the budget"
        elif trial.cost > max_drop:
            verdict = f"beyond the budget of {max_drop:g}"
        else:
            verdict = f"{best.name} is {trial.ms / best.ms:.2f}x as fast" if trial.ms > best.ms else (
                f"less than {100 * WORTH:.0f} % faster than {best.name}"
            )  # fmt: skip
        judged.append(replace(trial, verdict=verdict))
    return best.name, judged


class _Int8:
    """INT8 graphs of one model with some of its layers quantised; smoothed once, in all of them."""

    def __init__(self, graph: OnnxGraph, ranges: Ranges, options: LowerOptions, windows: Sequence[Float32]) -> None:
        self._options = options
        self._graph = prepare_int8(graph, options.rest)
        self._ranges = ranges
        plan = self._plan(())
        self.blocks = blocks_of(self._graph, plan)
        if not self.blocks:
            raise DeployError("precision int8: nothing qualifies; use --precision bf16 or fp32")
        if options.smooth:
            self._graph, self._ranges, _ = smooth(self._graph, plan, ranges)
        self._extremes = {} if options.rest == "fp32" else extremes(self._graph, windows)

    def graph(self, layers: Collection[str]) -> OnnxGraph:
        """With `layers` in INT8.  Bias correction and the gate come when the plan has been chosen."""
        skip = [layer for block in self.blocks for layer in block.layers if layer not in set(layers)]
        plan = self._plan(skip)
        lowered = lower_int8(self._graph, plan, self._ranges, self._options.rest)
        if self._options.rest == "fp32":
            return lowered
        known = carried_over(lowered, self._extremes)
        return to_float(lowered, self._options.rest, known, self._options)[0]

    def _plan(self, skip: Collection[str]) -> PrecisionPlan:
        options = replace(self._options.int8, skip=(*self._options.int8.skip, *skip))
        return plan_int8(self._graph, self._ranges, self._options.rest, options)


def _half(graph: OnnxGraph, half: str, windows: Sequence[Float32], options: LowerOptions) -> OnnxGraph:
    origin = prepare(graph, half)
    return to_float(origin, half, extremes(origin, windows), options)[0]


def _sensitivity(lowering: _Int8, base: Session, bench: Workbench, log: Log) -> tuple[list[BlockTrial], list[Block]]:
    """Each block alone: what it costs and what it gains.  Returns the trials, and the blocks to keep."""
    plain = _logits(base, bench.windows)
    loss = 100 * (1 - bench.agreement(plain))
    trials, kept = [], []
    for block in lowering.blocks:
        with bench.compiled(lowering.graph(block.layers), "int8") as session:
            before, after = median_ms([base, session], bench.windows[0])
            logits = _logits(session, bench.windows)
        lost = 100 * (1 - bench.agreement(logits)) - loss
        error = float(np.sqrt(np.mean((logits - plain) ** 2) / np.mean(plain**2)))
        if before - after < NOISE * before:
            verdict = f"stays in higher precision: gains {before - after:.1f} of {before:.1f} ms"
        elif lost > bench.max_drop and not bench.labelled:  # points of mIoU are judged on whole plans
            verdict = f"stays in higher precision: alone it changes {lost:.2f} % of the labels"
        else:
            verdict = "int8"
            kept.append(block)
        trials.append(
            BlockTrial(
                block.name, len(block.layers), gain_ms=before - after, label_loss=lost, error=error, verdict=verdict
            )
        )
        log("block", f"{block.name}: {before - after:+.1f} ms, {lost:+.3f} % of labels, error {error:.2g}; {verdict}")
    return trials, kept


def _logits(session: Session, windows: Sequence[Float32]) -> Float32:
    return np.concatenate([session.run(window).copy() for window in windows])
