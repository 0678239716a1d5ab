"""One head of attention as two: ``softmax(q k^T) v`` for the upper and the lower half of the queries side by side.

Every query is answered by itself, so that the halves of (1, 1, L, d) are two heads (1, 2, L/2, d) that share keys and
values: the same numbers, bit for bit.  NVIDIA's compiler does not fuse the attention of a single head over few
hundred keys, and then writes and reads the score matrix; with two heads it does.

Conditions: static shapes, one head, an even number of queries; between the two products nothing but softmax over the
keys; nobody else reads what lies between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Editor, Outcome, integer, only_use, shape

NAME = "queries of a single head split in two"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "split_queries"), 0, []
    for node in list(model.graph):
        found = _match(node)
        if isinstance(found, str):
            declined.append(f"{node.name}: {found}")
        elif found is not None:
            _split(editor, node, *found)
            applied += 1
    return Outcome(applied, tuple(declined))


def _match(scores: ir.Node) -> tuple[ir.Node, ir.Node] | str | None:
    """Softmax and second product of the attention whose first product is `scores`; a reason; or None."""
    if scores.op_type != "MatMul":
        return None
    softmax = only_use(scores.outputs[0])
    if softmax is None or softmax.op_type != "Softmax":
        return None
    mixed = only_use(softmax.outputs[0])
    if mixed is None or mixed.op_type != "MatMul" or mixed.inputs[0] is not softmax.outputs[0]:
        return None
    q, k, v = shape(scores.inputs[0]), shape(scores.inputs[1]), shape(mixed.inputs[1])
    if q is None or k is None or v is None or len(q) != 4 or len(k) != 4 or len(v) != 4:
        return None
    if q[:2] != (1, 1) or k[:2] != (1, 1) or v[:2] != (1, 1):
        return None
    if integer(softmax, "axis", -1) % 4 != 3:
        return "softmax is not over the keys"
    if q[2] % 2:
        return f"{q[2]} queries, expected an even number"
    return softmax, mixed


def _split(editor: Editor, scores: ir.Node, softmax: ir.Node, mixed: ir.Node) -> None:
    q, k, v = scores.inputs[0], scores.inputs[1], mixed.inputs[1]
    _, _, queries, depth = shape(q) or ()
    out = shape(mixed.outputs[0]) or ()
    keys = (shape(k) or ())[-1]

    def twice(value: ir.Value | None) -> ir.Value:
        size = (1, 2, *(shape(value) or ())[2:])
        heads = editor.initializer(np.array([1, 2, 1, 1], np.int64), f"{scores.name}/split_queries/heads")
        return editor.node(scores, "Expand", [value, heads], size)

    upper = editor.reshape(scores, q, (1, 2, queries // 2, depth))
    product = editor.node(scores, "MatMul", [upper, twice(k)], (1, 2, queries // 2, keys))
    weights = editor.node(scores, "Softmax", [product], (1, 2, queries // 2, keys), softmax.attributes.values())
    answers = editor.node(mixed, "MatMul", [weights, twice(v)], (1, 2, queries // 2, out[-1]))
    editor.stand_in(scores.outputs[0], product)
    editor.stand_in(softmax.outputs[0], weights)
    editor.stand_in(mixed.outputs[0], editor.reshape(mixed, answers, out))
