"""``Mul(P(x W + b), s) -> P(x (s W) + s b)``: attention's 1/sqrt(d) disappears into the projection before it.

P is any chain of Reshape and Transpose, which only move values; and a product of matrices may stand between, since
``(s A) B = s (A B)``.  The scale then costs nothing, where it was a pass over Q, over K as well (transformers), or over
the whole score matrix (models that scale after the product).  Exact in real arithmetic; for head widths whose square
root is a power of two also bit for bit.

Conditions: s is one constant number, W (and b) are constants, and nobody else reads what lies between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Editor, Outcome, exact, only_producer, only_use, scalar, shape, unlowered

NAME = "attention scale into the projection"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "fold_scale"), 0, []
    for node in list(model.graph):
        found = _scaled(node)
        if found is None:
            continue
        value, factor = found
        linear = _projection(value) if shape(value) == shape(node.outputs[0]) else None
        if linear is None:
            if _is_attention(node):
                declined.append(f"{node.name}: no Linear with constant weights before it that it alone reads")
            continue
        _fold(editor, linear, factor)
        editor.replace(node.outputs[0], value)
        applied += 1
    return Outcome(applied, tuple(declined))


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """What is multiplied, and with which number."""
    if node.op_type not in ("Mul", "Div") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    factor = scalar(right)
    if factor is not None and left is not None:
        if factor == 0:
            return None
        return left, factor if node.op_type == "Mul" else 1 / factor
    factor = scalar(left) if node.op_type == "Mul" else None
    return (right, factor) if factor is not None and right is not None else None


def _projection(value: ir.Value | None) -> list[tuple[ir.Node, int]] | None:
    """The constant inputs to scale, as (node, input), of the Linear from which `value` came unchanged."""
    node = only_producer(value)
    while node is not None and node.op_type in ("Reshape", "Transpose"):
        node = only_producer(node.inputs[0])
    if node is None:
        return None
    if node.op_type == "MatMul":
        if _is_weight(node.inputs[1]):
            return [(node, 1)]
        return _projection(node.inputs[0]) or _projection(node.inputs[1])
    if node.op_type == "Add":
        for index, other in ((0, 1), (1, 0)):
            if _is_weight(node.inputs[index]):
                inner = only_producer(node.inputs[other])
                if inner is not None and inner.op_type == "MatMul" and _is_weight(inner.inputs[1]):
                    return [(inner, 1), (node, index)]
    return None


def _is_weight(value: ir.Value | None) -> bool:
    return unlowered(value) is not None


def _is_attention(node: ir.Node) -> bool:
    """Whether a product of two activations or a softmax reads the result: only there is a reason worth logging."""
    reader = only_use(node.outputs[0])
    return reader is not None and reader.op_type in ("MatMul", "Softmax")


def _fold(editor: Editor, places: list[tuple[ir.Node, int]], factor: float) -> None:
    for node, index in places:
        old = node.inputs[index]
        array = exact(old)
        assert old is not None
        assert array is not None
        scaled = editor.initializer((array * factor).astype(np.float32), f"{old.name}/fold_scale")
        node.replace_input_with(index, scaled)
