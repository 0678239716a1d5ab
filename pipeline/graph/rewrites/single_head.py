"""``(P (x V)) O + b -> P (x (V O)) + b``: what is projected after the attention of a single head, before it.

P are the weights of one head, V and O the constant matrices before and after; products of matrices associate.  The
reduced tokens x are fewer than the queries that O was applied to (64 times in SegFormer's first stage), and the sum
that follows is left without a product.  Exact in real arithmetic.

Conditions: the moves between the attention and O keep each query's values together, in their order, as with several
heads they do not; V O is as wide as V; nobody else reads what lies between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.attention import moved, moved_linear, projection, without_bias
from pipeline.graph.surgery import Editor, Linear, Outcome, only_producer, shape

NAME = "projection of a single head into its values"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied = Editor(model, "single_head"), 0
    for node in list(model.graph):
        found = _match(node)
        if found is not None:
            _fold(editor, *found)
            applied += 1
    return Outcome(applied)


def _match(product: ir.Node) -> tuple[Linear, Linear] | None:
    """The Linears before and after an attention whose second product is `product`, where the one can take the other."""
    softmax = None if product.op_type != "MatMul" else only_producer(product.inputs[0])
    if softmax is None or softmax.op_type != "Softmax":
        return None
    values, out = moved_linear(product.inputs[1]), shape(product.outputs[0])
    reader, after = projection(product)
    if values is None or reader is None or out is None or reader.node.op_type != "Add":
        return None
    source, before = values
    width = source.weight.shape[1]
    if source.bias is not None or reader.weight.shape != (width, width) or out[-1] != width:
        return None
    came, went = shape(product.inputs[1]), shape(reader.x)
    if came is None or went is None or came[-1] != width or went[-1] != width:
        return None
    # Rows of one value: where every row arrives whole, at both ends, the last axis was never touched.
    row = np.arange(width, dtype=np.float64)
    ends = (moved(row, shape(source.node.outputs[0]), before), moved(row, out, after))
    return (source, reader) if all((rows == row).all() for rows in ends) else None


def _fold(editor: Editor, source: Linear, reader: Linear) -> None:
    folded = editor.initializer(
        (source.weight @ reader.weight).astype(np.float32), f"{source.node.name}/{editor.rule}/weight"
    )
    source.node.replace_input_with(1, folded)
    editor.replace(without_bias(reader), reader.x)
