"""That a graph for any number of windows computes what the one for a single window does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from engines.contract import Float32
from engines.proof.batch_gate import different
from pipeline.graph.batches.walk import Declined
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, run_model
from pipeline.graph.proto import infer
from pipeline.graph.surgery import forget_shapes, shape

# The same sums in another order at most, and roundings that fall the other way after it: of bf16, the coarsest type,
# one is 2^-8 of a value, and some follow each other.  Measured: 0 on most models, at most 1.1e-3 of the largest logit
# (fp16).  A window that got another's values is off by about the largest logit.
ALLOWED = 2.0**-6


def confirm(before: OnnxGraph, after: OnnxGraph, windows: Sequence[Float32], batches: Sequence[int]) -> None:
    """Raises Declined unless one window gives the same bits as before, and those of a batch what each gives alone.

    windows: at least one (1, 3, H, W); ones made from them stand in for what is missing.
    Every tensor is rounded to its type.  Without `batches` nothing is run where shapes tell that one window stays what
    it was: all that the pass changes is where values go, and the engine of the one window is verified as any other.
    """
    if not batches and _shapes_stay(before, after):
        return
    inputs = different(windows, max(batches, default=1))
    old = run_model(emulate(before).model, inputs[:1])
    new = emulate(after).model
    alone = [run_model(new, [window]) for window in inputs]
    if not np.array_equal(old, alone[0]):
        raise Declined(f"one window gives other logits than before, by {np.abs(old - alone[0]).max():.1e}")
    largest = float(np.abs(alone).max())
    for count in batches:
        together = run_model(with_batch(new, count), [np.concatenate(inputs[:count])])
        off = [float(np.abs(together[i : i + 1] - alone[i]).max()) for i in range(count)]
        worst = int(np.argmax(off))
        if not off[worst] <= ALLOWED * largest:
            raise Declined(
                f"window {worst + 1} of {count} at once differs from the same one alone by {off[worst]:.1e} "
                f"on logits up to {largest:.1f}"
            )


def _shapes_stay(before: OnnxGraph, after: OnnxGraph) -> bool:
    """Whether every tensor of `before` that is left has, newly inferred, the shape that it had."""
    made = after.model.clone()
    inside = [value for node in made.graph for value in node.outputs]
    for value in inside:
        value.shape = None
    infer(made)
    old = {value.name: shape(value) for node in before.model.graph for value in node.outputs}
    return all(shape(value) is not None and shape(value) == old.get(value.name, shape(value)) for value in inside)


def with_batch(model: ir.Model, batch: int) -> ir.Model:
    """A copy that declares (batch, 3, H, W) -> (batch, K, h, w)."""
    copy = model.clone()
    for value in (*copy.graph.inputs, *copy.graph.outputs):
        assert value.shape is not None, "of a graph with fixed shapes"
        value.shape = ir.Shape((batch, *value.shape[1:]))
    forget_shapes(copy)
    return copy
