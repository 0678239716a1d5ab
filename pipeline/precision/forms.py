"""Which forms for GPUs a graph takes: those in which NVIDIA's compiler moves less, asked here where it can be.

On a GPU these networks are bound by memory, so that bytes decide.  TensorRT-RTX tells what it makes of a graph without
a GPU, in a second or two; it is a relative of the compiler on a board, and called a proxy.  Where it is not installed,
the forms that have paid on every network that was tried are taken unasked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Protocol

from calib.ranges.ranges import Ranges, TensorRange
from engines.backends import get_backend
from engines.contract import Backend, BuildConfig, Float32, Log
from engines.errors import DeployError
from engines.proof.agreement import GATES, Agreement, compare_logits
from engines.roofline.kernels import KernelPlan
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.forms import FORMS, UNASKED
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.rewrites import apply_rule
from pipeline.graph.surgery import REORDERS, is_float
from pipeline.graph.tail import before_tail, ending_for
from pipeline.precision.islands import plan_float
from pipeline.precision.lower import prepare_int8, to_float
from pipeline.precision.lower_float import lower_float, prepare
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.worth import kernel_plan, tells
from pipeline.request import Int8Options, IslandOptions, LowerOptions
from pipeline.side_by_side import compiled, median_ms

PLANNER = "tensorrt_rtx"


@dataclass(frozen=True)
class Formed:
    """stages: the graph as it was, then after each form that was taken.  steps: the last compared with the first."""

    stages: tuple[OnnxGraph, ...]
    steps: tuple[Agreement, ...] = ()

    @property
    def graph(self) -> OnnxGraph:
        return self.stages[-1]


class Judge(Protocol):
    """Whether a form pays."""

    def __call__(self, form: ModuleType, before: OnnxGraph, after: OnnxGraph) -> tuple[bool, str]:
        """Whether `after`, which is `before` in `form`, is better, and why."""


def formed(
    graph: OnnxGraph, judge: Judge, inputs: Sequence[Float32], reference: Float32, log: Log
) -> Formed:  # fmt: skip
    """`graph` in the forms that pay, verified on `inputs`, whose logits are `reference`.  Raises GateError."""
    stages = taken(graph, judge, log)
    if len(stages) == 1:
        return Formed((graph,))
    logits = run_onnx(stages[-1], list(inputs))
    agreement = compare_logits("form", logits, "the rewritten graph", reference, GATES["fp32"])
    agreement.require(GATES["fp32"])
    log("form", f"all of them; {agreement}")
    return Formed(tuple(stages), (agreement,))


def taken(graph: OnnxGraph, judge: Judge, log: Log) -> list[OnnxGraph]:
    """The graph as it is, then after each form that `judge` finds better; not verified."""
    stages = [graph]
    for form in FORMS:
        trial = apply_rule(stages[-1], form)
        if trial.history[-1].places:
            better, why = judge(form, stages[-1], trial)
            places = f"{trial.history[-1].places} place(s)" if better else "not taken"
            log("form", f"{form.NAME}: {places}, {why}")
            stages += [trial] if better else []
    return stages


def judge_for(
    backend: Backend, precision: str, config: BuildConfig, window: Float32, clock: bool, log: Log, tail: bool = False,
    eight: Int8Options | None = None,
) -> Judge | None:  # fmt: skip
    """Who decides here; None where no form can pay.

    precision: of the activations, fp32, fp16 or bf16.  clock: to time engines where they can be run, (1, 3, H, W)
    `window` being what they are run on; else the compiler is asked, and without one what always paid is taken.
    tail: whether the engine ends before a decoder's tail, where there is one.  eight: what is quantised on top of that,
    where the compiler tells what it makes of 8 bits: what serves halves may tear products from their biases.
    """
    if not backend.on_gpu or backend.from_program:
        return None
    if clock and backend.unavailable() is None:
        return ByClock(backend, precision, config, window)
    if importlib.util.find_spec(PLANNER) is None:
        return unasked(f"{PLANNER}, which could tell, is not installed")
    return ByPlan(precision, log, tail, eight if tells(backend) else None)


@dataclass
class ByPlan:
    """Fewer bytes moved, or as many in fewer kernels."""

    precision: str
    log: Log
    tail: bool = False
    eight: Int8Options | None = None
    _last: tuple[OnnxGraph, KernelPlan] | None = None

    def __call__(self, form: ModuleType, before: OnnxGraph, after: OnnxGraph) -> tuple[bool, str]:
        try:
            if self._last is None:
                self._last = before, self._ask(before)
                source = self._last[1].source
                self.log("form", f"asked of {source}, a proxy for other compilers and GPUs: {_cost(self._last[1])}")
            known = self._last[1] if self._last[0] is before else self._ask(before)
            plan = self._ask(after)
        except DeployError as error:
            return unasked(str(error))(form, before, after)
        better = (plan.bytes, len(plan.kernels)) < (known.bytes, len(known.kernels))
        self._last = (after, plan) if better else (before, known)
        return better, f"{_cost(known)} -> {_cost(plan)}"

    def _ask(self, graph: OnnxGraph) -> KernelPlan:
        return ask(graph, self.precision, self.tail, self.eight)


@dataclass(frozen=True)
class ByClock:
    """Less time on this device."""

    backend: Backend
    precision: str
    config: BuildConfig
    window: Float32

    def __call__(self, form: ModuleType, before: OnnxGraph, after: OnnxGraph) -> tuple[bool, str]:
        config = replace(self.config, precision=self.precision)
        graphs = [typed(graph, self.precision) for graph in (before, after)]
        with compiled(graphs[0], self.backend, config) as old, compiled(graphs[1], self.backend, config) as new:
            slower, faster = median_ms([old, new], self.window)
        return faster < slower, f"{slower:.2f} -> {faster:.2f} ms on {self.backend.device()}"


def unasked(why: str) -> Judge:
    def judge(form: ModuleType, before: OnnxGraph, after: OnnxGraph) -> tuple[bool, str]:
        if form in UNASKED:
            return True, f"taken unasked: {why}"
        return False, f"it does not always pay: {why}"

    return judge


def carried(ranges: Ranges, stages: Sequence[OnnxGraph]) -> Ranges:
    """The same ranges for the last of `stages`, of whose first they were measured.

    A tensor that holds the values of another in another order has its range.
    """
    found = dict(ranges.tensors)
    for stage in stages:
        moves = [(node.inputs[0], node.outputs[0]) for node in stage.model.graph if node.op_type in REORDERS]
        pairs = [(str(source.name), str(made.name)) for source, made in moves if source is not None]
        for source, made in (*pairs, *((made, source) for source, made in reversed(pairs))):
            if source in found:
                found.setdefault(made, found[source])
    return replace(ranges, tensors=found)


def ask(graph: OnnxGraph, precision: str, tail: bool = False, eight: Int8Options | None = None) -> KernelPlan:
    """What TensorRT-RTX makes of an exact graph in `precision`; of its engine alone, where `tail` takes one off.

    eight: with these layers in 8 bits, whatever their ranges: kernels do not depend on them.

    Raises DeployError where it is not installed or refuses the graph.
    """
    planner = get_backend(PLANNER)
    made = typed(graph, precision) if eight is None else quantised(graph, precision, eight)
    return kernel_plan(planner, before_tail(made, ending_for(planner, graph, tail)))


def typed(graph: OnnxGraph, precision: str) -> OnnxGraph:
    """`graph` with nothing but statistics in fp32, as ranges would have it at best; to be looked at, not to be used."""
    if precision == "fp32":
        return graph
    graph = prepare(graph, precision)
    values = (value for node in graph.model.graph for value in (*node.inputs, *node.outputs))
    ranges = {str(value.name): (0.0, 0.0) for value in values if value is not None and is_float(value)}
    return lower_float(graph, plan_float(graph, precision, ranges, IslandOptions(wide_sums=precision == "fp16")))


def quantised(graph: OnnxGraph, half: str, eight: Int8Options) -> OnnxGraph:
    """`graph` with the layers in 8 bits that `eight` would have, every tensor within one; to be looked at."""
    current = prepare_int8(graph, half)
    values = (value for node in current.model.graph for value in (*node.inputs, *node.outputs) if value is not None)
    unit = TensorRange(1.0, -1.0, 1.0, rms=0.5)
    tensors = {str(value.name): unit for value in values if is_float(value)}
    ranges = Ranges(
        tensors, "max", images=1, windows=1, seed=0, dataset_sha256="", graph_sha256=graph_sha256(graph.model)
    )
    plan = plan_int8(current, ranges, half, eight)
    lowered = lower_int8(current, plan, ranges, half)
    still = {str(value.name): (0.0, 0.0) for node in lowered.model.graph for value in node.outputs if is_float(value)}
    still |= dict.fromkeys(tensors, (0.0, 0.0))
    return to_float(lowered, half, still, LowerOptions(island=IslandOptions(wide_sums=half == "fp16")))[0]


def _cost(plan: KernelPlan) -> str:
    fused = f", {plan.fused_attentions} of {plan.attentions} attentions fused" if plan.attentions else ""
    return f"{plan.bytes / 1e6:.0f} MB in {len(plan.kernels)} kernels{fused}"
