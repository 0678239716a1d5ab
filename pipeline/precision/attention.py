"""The two products of an attention, which FP8 can take together: softmax(Q K) V."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from calib.ranges.ranges import Ranges
from pipeline.graph.surgery import MOVES, computed, constant, only_use

_PASSES = ("Cast", "Identity")  # between the softmax and the product with V
_SCALES = (*_PASSES, "Mul", "Div", "Add")  # between the product with K and the softmax


def attention_products(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node]]:
    """(Q K, softmax V) of every attention; what does not look like one is left out."""
    for softmax in model.graph:
        if softmax.op_type != "Softmax":
            continue
        after = only_use(softmax.outputs[0])
        while after is not None and after.op_type in _PASSES:
            after = only_use(after.outputs[0])
        before = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
        while before is not None and before.op_type in _SCALES and len(computed(before)) == 1:
            before = computed(before)[0].producer()
        if before is not None and after is not None and _of_activations(before) and _of_activations(after):
            yield before, after


def range_of(value: ir.Value | None, ranges: Ranges) -> float | None:
    """The largest |x| that was seen in `value`, or in what it only moves; of a softmax 1.  None where none was."""
    while value is not None:
        maker = value.producer()
        if maker is not None and maker.op_type == "Softmax":
            return 1.0
        if str(value.name) in ranges.tensors:
            return ranges.tensors[str(value.name)].amax
        if maker is None or maker.op_type not in (*MOVES, "Cast"):
            return None
        value = maker.inputs[0]
    return None


def _of_activations(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and all(constant(value) is None for value in node.inputs)
