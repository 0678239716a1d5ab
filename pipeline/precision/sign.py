"""Which tensors cannot be negative, whatever the image: by the graph, not by what was measured."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import MOVES, computed, constant, scalar, text

_MADE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs"})
_KEPT = MOVES | {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax"}
_JOINED = frozenset({"Concat", "Add", "Mul", "Sum", "Max"})  # of what is not negative


def never_negative(value: ir.Value | None, known: dict[ir.Value, bool] | None = None) -> bool:
    """known: answers to keep between calls for one graph."""
    known = {} if known is None else known
    if value is None:
        return False
    if value not in known:
        known[value] = _never_negative(value, known)
    return known[value]


def _never_negative(value: ir.Value, known: dict[ir.Value, bool]) -> bool:
    array, node = constant(value), value.producer()
    if array is not None:
        return bool((array.astype(np.float64) >= 0).all())
    if node is None or node.domain:
        return False
    if node.op_type == "Clip":
        least = scalar(node.inputs[1]) if len(node.inputs) > 1 else None
        return least is not None and least >= 0
    if node.op_type == "Resize" and text(node, "mode", "nearest") == "cubic":
        return False
    if node.op_type in _KEPT | {"Resize"}:
        return never_negative(computed(node)[0], known)
    if node.op_type in _JOINED:
        return all(never_negative(each, known) for each in node.inputs)
    return node.op_type in _MADE
