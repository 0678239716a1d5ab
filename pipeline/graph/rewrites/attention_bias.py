"""``softmax(q (k + b)^T) (v + c) W_o + b_o -> softmax(q k^T) v W_o + (c W_o + b_o)``: biases that attention cancels.

The bias of the keys adds q b, the same number to every score of a row, and softmax does not see that.  The bias of the
values comes out as it went in, because the weights of a row sum to one, and then belongs to the projection after it
(Vaswani et al., arXiv 1706.03762, eq. 1).  Exact in real arithmetic.

Conditions: softmax over the keys; between it and the keys' product only what adds to the scores or scales them by a
number; constant biases; from the values to the projection only Reshape and Transpose; nobody else reads what lies
between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.attention import moved, moved_linear, projection, without_bias
from pipeline.graph.surgery import (
    Editor,
    Float64,
    Linear,
    Outcome,
    exact,
    integer,
    only_producer,
    only_use,
    scalar,
    shape,
)

NAME = "biases that attention cancels"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "attention_bias"), 0, []
    for node in list(model.graph):
        if node.op_type != "Softmax" or not _over_the_last(node):
            continue
        done = [step(editor, node) for step in (_keys, _values)]
        applied += any(reason is None for reason in done)
        declined += [f"{node.name}: {reason}" for reason in done if reason]
    return Outcome(applied, tuple(declined))


def _over_the_last(softmax: ir.Node) -> bool:
    scores = shape(softmax.inputs[0])
    return scores is not None and integer(softmax, "axis", -1) % len(scores) == len(scores) - 1


def _keys(editor: Editor, softmax: ir.Node) -> str | None:
    """None where the bias of the keys is gone, else why not; empty where there is none."""
    product = _product(softmax.inputs[0])
    if product is None or product.inputs[1] is None:
        return ""
    found = _biased(product.inputs[1])
    if found is None:
        return ""
    source, spread = found
    if np.ptp(spread, axis=-1).any():  # over the keys
        return "the bias differs from key to key"
    _drop_bias(editor, source)
    return None


def _values(editor: Editor, softmax: ir.Node) -> str | None:
    """None where the bias of the values went to the projection after them, else why not; empty where there is none."""
    product = only_use(softmax.outputs[0])
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not softmax.outputs[0]:
        return ""
    found = _biased(product.inputs[1])
    if found is None:
        return ""
    source, spread = found
    if np.ptp(spread, axis=-2).any():
        return "the bias differs from value to value"
    out = shape(product.outputs[0])
    reader, after = projection(product)
    if out is None or reader is None or reader.bias is None:
        return "no Linear with a constant bias after it that alone reads what attention makes"
    carried = moved(spread[..., :1, :], out, after)
    if np.ptp(carried, axis=tuple(range(carried.ndim - 1))).any():
        return "the bias differs from query to query"
    bias = reader.bias + carried.reshape(-1, carried.shape[-1])[0] @ reader.weight
    stored = editor.initializer(bias.astype(np.float32), f"{reader.node.name}/{editor.rule}/bias")
    reader.node.replace_input_with(_constant_input(reader.node), stored)
    _drop_bias(editor, source)
    return None


def _product(scores: ir.Value | None) -> ir.Node | None:
    """The product of queries and keys, before what softmax does not see or what a number scales."""
    node = only_producer(scores)
    while node is not None and node.op_type != "MatMul":
        sides = [value for value in node.inputs if value is not None and exact(value) is None]
        scaled = node.op_type in ("Mul", "Div") and len(node.inputs) == 2 and scalar(node.inputs[1]) is not None
        if not scaled and node.op_type != "Add":
            return None
        node = next((made for side in sides if (made := only_producer(side)) and made.op_type in _SCORES), None)
    return node


_SCORES = ("MatMul", "Mul", "Div", "Add")


def _biased(value: ir.Value | None) -> tuple[Linear, Float64] | None:
    """The Linear with a bias from which `value` came unchanged, and the bias as attention reads it."""
    found = moved_linear(value)
    if found is None:
        return None
    source, moves = found
    if source.bias is None:
        return None
    return source, moved(source.bias, shape(source.node.outputs[0]), moves)


def _drop_bias(editor: Editor, source: Linear) -> None:
    """Let the bare product take the place of the one with a bias."""
    editor.replace(source.node.outputs[0], without_bias(source))


def _constant_input(add: ir.Node) -> int:
    return next(index for index, value in enumerate(add.inputs) if exact(value) is not None)
