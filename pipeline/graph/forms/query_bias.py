"""``softmax((x W_q + b) k^T) -> softmax((x W_q) k^T + b k^T)``: the bias of the queries as a number for each key.

With k = y W_k, what it adds to the scores of key j is y_j (W_k b), the same for every query: one product of the few
source tokens y with a vector for each head.  Exact in real arithmetic.  NVIDIA's compiler then has the projections of
queries, keys and values, none with a bias, in one product whose result its attention reads; with a bias it turns each
in a kernel of its own.

Conditions: softmax over the keys, right after the product; constant biases and projections on both sides, that of the
keys without a bias (`attention_bias` takes it away); nobody else reads what lies between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.attention import Move, moved, moved_linear, without_bias
from pipeline.graph.surgery import Editor, Float64, Linear, Outcome, integer, only_producer, shape

NAME = "bias of the queries as a number for each key"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied = Editor(model, "query_bias"), 0
    for node in list(model.graph):
        found = _match(node)
        if found is not None:
            _move_bias(editor, node, *found)
            applied += 1
    return Outcome(applied)


def _match(softmax: ir.Node) -> tuple[ir.Node, Linear, Linear, Float64] | None:
    """The scores' product, the Linears of queries and keys, and what the bias is worth to each head (C, heads)."""
    scores = shape(softmax.inputs[0]) if softmax.op_type == "Softmax" else None
    if scores is None or len(scores) != 4 or integer(softmax, "axis", -1) % 4 != 3:
        return None
    product = only_producer(softmax.inputs[0])
    if product is None or product.op_type != "MatMul":
        return None
    queries, keys = moved_linear(product.inputs[0]), moved_linear(product.inputs[1])
    q_shape, k_shape = shape(product.inputs[0]), shape(product.inputs[1])
    if queries is None or keys is None or queries[0].bias is None or keys[0].bias is not None:
        return None
    if q_shape is None or k_shape is None or len(q_shape) != 4 or len(k_shape) != 4 or scores[0] != 1:
        return None
    source = shape(keys[0].x)
    if source is None or len(source) != 3 or source[:2] != (1, scores[3]):
        return None
    bias = _moved(queries[0].bias, queries, q_shape)  # (1, heads, L, d)
    column = _moved(np.arange(keys[0].weight.shape[1], dtype=np.float64), keys, k_shape)  # (1, heads, d, M)
    if bias is None or column is None or np.ptp(bias, axis=2).any() or np.ptp(column, axis=3).any():
        return None
    token = moved(np.arange(source[1], dtype=np.float64)[:, None], shape(keys[0].node.outputs[0]), keys[1])
    if (token != np.arange(source[1])).any():  # key j is not token j
        return None
    weight = keys[0].weight[:, column[0, :, :, 0].astype(int)]  # (C, heads, d)
    return product, queries[0], keys[0], np.einsum("chd,hd->ch", weight, bias[0, :, 0, :])


def _moved(vector: Float64, found: tuple[Linear, list[Move]], size: tuple[int, ...]) -> Float64 | None:
    """`vector`, the same for every token, as attention reads it."""
    array = moved(vector, shape(found[0].node.outputs[0]), found[1])
    return array if array.shape == size else None


def _move_bias(
    editor: Editor, softmax: ir.Node, product: ir.Node, queries: Linear, keys: Linear, worth: Float64
) -> None:
    _, heads, rows, count = shape(softmax.inputs[0]) or ()
    editor.replace(queries.node.outputs[0], without_bias(queries))
    weight = editor.initializer(worth.astype(np.float32), f"{queries.node.name}/query_bias/weight")
    each = editor.node(softmax, "MatMul", [keys.x, weight], (1, count, heads))
    turned = editor.node(softmax, "Transpose", [each], (1, heads, count), [ir.AttrInt64s("perm", [0, 2, 1])])
    row = editor.reshape(softmax, turned, (1, heads, 1, count))
    added = editor.node(softmax, "Add", [product.outputs[0], row], (1, heads, rows, count))
    softmax.replace_input_with(0, added)
