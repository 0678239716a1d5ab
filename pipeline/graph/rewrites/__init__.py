"""Exact rewrites of the graph: the same function in fewer multiply-adds and fewer passes over memory.

One rule a file, with its equation and its conditions.  A rule that looked at a place and left it alone says why.
"""

from __future__ import annotations

from types import ModuleType

import onnx_ir.passes.common as passes

from pipeline.graph.macs import macs_by_node
from pipeline.graph.onnx_graph import OnnxGraph, Step
from pipeline.graph.rewrites import (
    attention_bias,
    commute_resize,
    drop_resize,
    fold_scale,
    linear_on_map,
    merge_convs,
    single_head,
    split_concat,
)

# The order matters: each opens the way for the next, and together they fold SegFormer's decoder.
RULES: tuple[ModuleType, ...] = (
    drop_resize, fold_scale, attention_bias, single_head, linear_on_map, split_concat, commute_resize, merge_convs,
)  # fmt: skip


def apply_rule(graph: OnnxGraph, rule: ModuleType) -> OnnxGraph:
    """`graph` after one rule, with a Step that says what was done, or why nothing was.  Raises DeployError."""
    model = graph.model.clone()
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    outcome = rule.rewrite(model)
    declined = "; ".join(outcome.declined)
    if not outcome.applied:
        return graph.declined(rule.NAME, declined or "nothing in the graph looks like it")
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    saved = sum(macs_by_node(graph.model).values()) - sum(macs_by_node(model).values())
    return graph.then(model, rule.NAME, declined=declined, places=outcome.applied, macs_saved=saved)


def apply_rules(graph: OnnxGraph) -> list[OnnxGraph]:
    """`graph` after the first rule, after the first two, and so on; the last one is after all of them."""
    stages = []
    for rule in RULES:
        graph = apply_rule(graph, rule)
        stages.append(graph)
    return stages


def describe_step(step: Step) -> str:
    """One line for the build log and for `inspect`."""
    if not step.places:
        return f"{step.rule}: declined, {step.declined}"
    parts = [f"{step.places} place(s)"]
    if step.macs_saved:
        parts.append(f"{step.macs_saved / 1e9:.2f} GMAC saved")
    if step.ms_saved is not None:
        parts.append(f"{step.ms_saved:.1f} ms saved")
    if step.declined:
        parts.append(f"declined elsewhere: {step.declined}")
    return f"{step.rule}: {', '.join(parts)}"
