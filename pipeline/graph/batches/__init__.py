"""A graph for one window becomes one for any number of windows: nothing in it says any more that there is one.

Exporters write the batch into constants: into the targets of Reshape, the sizes of Resize and Expand, a class token of
shape (1, 1, C) that is concatenated.  Each becomes what means the same for one window and follows the input for more.
The graph still declares (1, 3, H, W); who wants N windows sets that one dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from engines.contract import Float32
from engines.errors import DeployError
from engines.proof.batch_gate import NEUTRAL
from pipeline.graph.batches.fixes import FIXES
from pipeline.graph.batches.proof import confirm
from pipeline.graph.batches.walk import Declined, Walk
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import refuse_control_flow


def for_any_batch(graph: OnnxGraph, windows: Sequence[Float32], batches: Sequence[int] = (2, 3)) -> OnnxGraph:
    """`graph` without a baked-in batch, confirmed on `windows` (1, 3, H, W); or unchanged.

    batches: the numbers of windows at once that it is confirmed for; without any it is confirmed for one window, and an
    engine for more is only used after it was compared with one for one (engines/proof/batch_gate.py).
    Its history gets one more step: how many nodes were changed, or why the graph stays one for a single window.
    """
    try:
        changed = neutral(graph)
        confirm(graph, changed, windows, batches)
    except (Declined, DeployError) as reason:
        return graph.declined(NEUTRAL, str(reason))
    return changed


def neutral(graph: OnnxGraph) -> OnnxGraph:
    """The pass alone, not confirmed.  Raises Declined, or DeployError on control flow."""
    refuse_control_flow(graph.model)
    model = graph.model.clone()
    return graph.then(model, NEUTRAL, places=make_neutral(model))


def make_neutral(model: ir.Model) -> int:
    """Change `model`, whose shapes are inferred, into one for any number of windows; returns how many nodes changed.

    Raises Declined; then it is left half changed.
    """
    LiftConstantsToInitializersPass(size_limit=0)(model)
    walk = Walk(model, FIXES)
    for node in tuple(model.graph):
        walk.visit(node)
    walk.finish()
    return walk.places
