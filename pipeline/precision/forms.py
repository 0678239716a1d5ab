"""Which forms for GPUs a graph takes: those in which NVIDIA's compiler moves less, asked here where it can be.

On a GPU these networks are bound by memory, so that bytes decide.  TensorRT-RTX tells what it makes of a graph without
a GPU, in a second or two; it is a relative of the compiler on a board, and called a proxy.  Where it is not installed,
the forms that have paid on every network that was tried are taken unasked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calib.ranges.ranges import Ranges
from engines.backends import get_backend
from engines.contract import Backend, Float32, Log
from engines.errors import DeployError
from engines.proof.agreement import GATES, Agreement, compare_logits
from engines.roofline.kernels import KernelPlan
from pipeline.graph.forms import FORMS, UNASKED
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.proto import stored
from pipeline.graph.rewrites import apply_rule
from pipeline.graph.surgery import REORDERS, is_float
from pipeline.graph.types import FLOATS
from pipeline.precision.islands import plan_float
from pipeline.precision.lower_float import lower_float, prepare

PLANNER = "tensorrt_rtx"


@dataclass(frozen=True)
class Formed:
    """stages: the graph as it was, then after each form that was taken.  steps: the last compared with the first."""

    stages: tuple[OnnxGraph, ...]
    steps: tuple[Agreement, ...] = ()

    @property
    def graph(self) -> OnnxGraph:
        return self.stages[-1]


def formed(
    graph: OnnxGraph, backend: Backend, precision: str, inputs: Sequence[Float32], reference: Float32, log: Log
) -> Formed:
    """`graph` in the forms that serve `backend`, verified on `inputs`, whose logits are `reference`.

    precision: of the activations, fp32, fp16 or bf16, in which the compiler is asked.  Raises GateError.
    """
    if not backend.on_gpu or backend.from_program:
        return Formed((graph,))
    stages = [graph]
    before, unasked = _asked(graph, precision, log)
    for form in FORMS:
        trial = apply_rule(stages[-1], form)
        if not trial.history[-1].places:
            continue
        if before is None:
            if form not in UNASKED:
                log("form", f"{form.NAME}: not taken, it does not always pay and {unasked}")
                continue
            text = f"taken unasked, {unasked}"
        else:
            after = _plan(trial, precision)
            text = f"{_cost(before)} -> {_cost(after)}"
            if (after.bytes, len(after.kernels)) >= (before.bytes, len(before.kernels)):
                log("form", f"{form.NAME}: not taken, {text}")
                continue
            before = after
        log("form", f"{form.NAME}: {trial.history[-1].places} place(s), {text}")
        stages.append(trial)
    if len(stages) == 1:
        return Formed((graph,))
    logits = run_onnx(stages[-1], list(inputs))
    agreement = compare_logits("form", logits, "the rewritten graph", reference, GATES["fp32"])
    agreement.require(GATES["fp32"])
    log("form", f"all of them; {agreement}")
    return Formed(tuple(stages), (agreement,))


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


def _asked(graph: OnnxGraph, precision: str, log: Log) -> tuple[KernelPlan | None, str]:
    """What the compiler makes of `graph`; or None, and why it cannot be asked."""
    if importlib.util.find_spec(PLANNER) is None:
        return None, f"{PLANNER}, which could tell, is not installed"
    try:
        plan = _plan(graph, precision)
    except DeployError as error:
        return None, str(error)
    log("form", f"asked of {plan.source}, a proxy for other compilers and GPUs: {_cost(plan)}")
    return plan, ""


def _plan(graph: OnnxGraph, precision: str) -> KernelPlan:
    """Of `graph` with nothing but statistics in fp32, as ranges would have it at best; values do not matter for it."""
    if precision in FLOATS and precision != "fp32":
        graph = prepare(graph, precision)
        values = (value for node in graph.model.graph for value in (*node.inputs, *node.outputs))
        ranges = {str(value.name): (0.0, 0.0) for value in values if value is not None and is_float(value)}
        graph = lower_float(graph, plan_float(graph, precision, ranges))
    with stored(graph.model) as path:
        plan: KernelPlan = get_backend(PLANNER).kernel_plan(path)  # type: ignore[attr-defined]
    return plan


def _cost(plan: KernelPlan) -> str:
    fused = f", {plan.fused_attentions} of {plan.attentions} attentions fused" if plan.attentions else ""
    return f"{plan.bytes / 1e6:.0f} MB in {len(plan.kernels)} kernels{fused}"
