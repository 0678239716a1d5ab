"""Normalisations that a graph writes out: mean, difference, variance, root and quotient as nodes of their own.

Exports of before opset 17 have no LayerNormalization, and the form for GPUs writes it out where the map is.  Its
squares leave the range of FP16 long before what goes in and comes out does (NVIDIA/TensorRT#2564), so that all of it is
one island.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.surgery import output_name, scalar


def written_out(model: ir.Model) -> frozenset[str]:
    """First outputs of the nodes that take part in (x - mean) / sqrt(var + eps), up to the quotient."""
    return frozenset(output_name(node) for last in model.graph for node in _parts(last))


def _parts(last: ir.Node) -> list[ir.Node]:
    """The nodes of the normalisation that `last` ends, if it does."""
    if last.op_type == "Div":
        centred, root, between = last.inputs[0], _made(last.inputs[1], "Sqrt"), []
    elif last.op_type == "Mul":
        sides = list(last.inputs)
        inverse = next((node for side in sides if (node := _made(side, "Reciprocal"))), None)
        if inverse is None:
            return []
        centred = next((side for side in sides if side is not inverse.outputs[0]), None)
        root, between = _made(inverse.inputs[0], "Sqrt"), [inverse]
    else:
        return []
    difference = _made(centred, "Sub")
    added = None if root is None else _made(root.inputs[0], "Add")
    if difference is None or root is None or added is None:
        return []
    variance = next((node for side in added.inputs if (node := _made(side, "ReduceMean"))), None)
    mean = _made(difference.inputs[1], "ReduceMean")
    square = None if variance is None else _square(variance.inputs[0], difference.outputs[0])
    if variance is None or square is None or mean is None or mean.inputs[0] is not difference.inputs[0]:
        return []
    return [mean, difference, square, variance, added, root, *between, last]


def _square(value: ir.Value | None, of: ir.Value) -> ir.Node | None:
    node = None if value is None else value.producer()
    if node is None or node.inputs[0] is not of:
        return None
    if node.op_type == "Mul":
        return node if node.inputs[1] is of else None
    return node if node.op_type == "Pow" and scalar(node.inputs[1]) == 2 else None


def _made(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None
