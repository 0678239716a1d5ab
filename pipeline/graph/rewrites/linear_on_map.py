"""``Reshape(Transpose(Transpose(Reshape(x)) W + b)) -> Conv1x1(x)``: a Linear over the pixels of a map, as convolution.

x is a map (1, C, H, W).  Flattened to tokens (1, HW, C), multiplied with W (C, D), and folded back to (1, D, H, W), it
went through four data movements for what a 1x1 convolution with weight W^T does in place.  The same products are
summed, so this is exact.  It is how transformers' SegFormer head projects each stage; the decoder's fold builds on it.

Conditions: batch 1 all the way, constant W (and b), nothing else reads what lies between, and the map that comes out
has the height and width of the one that went in.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Editor, Outcome, integers, linear, only_producer, shape

NAME = "linear on a map -> 1x1 convolution"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "linear_on_map"), 0, []
    for node in list(model.graph):
        found = _match(node)
        if isinstance(found, str):
            declined.append(f"{node.name}: {found}")
        elif found is not None:
            x, weight, bias = found
            editor.replace(node.outputs[0], editor.pointwise(node, x, weight.T, bias))
            applied += 1
    return Outcome(applied, tuple(declined))


def _match(unflatten: ir.Node) -> tuple[ir.Value, np.ndarray, np.ndarray | None] | str | None:
    """x, W and b of the subgraph that ends in `unflatten`; a reason; or None where nothing looks like it."""
    out = shape(unflatten.outputs[0])
    if unflatten.op_type != "Reshape" or out is None or len(out) != 4:
        return None
    back = only_producer(unflatten.inputs[0])
    if back is None or back.op_type != "Transpose" or integers(back, "perm", ()) != (0, 2, 1):
        return None
    found = linear(back.inputs[0])
    to_tokens = None if found is None else only_producer(found.x)
    if found is None or to_tokens is None or to_tokens.op_type != "Transpose":
        return None
    weight, bias = found.weight, found.bias
    flatten = only_producer(to_tokens.inputs[0])
    if integers(to_tokens, "perm", ()) != (0, 2, 1) or flatten is None or flatten.op_type != "Reshape":
        return None
    x = flatten.inputs[0]
    into = shape(x)
    if into is None or len(into) != 4:
        return None
    if into[0] != 1 or out != (1, weight.shape[1], *into[2:]) or into[1] != weight.shape[0]:
        return f"a map {into} comes out as {out}, expected the same height and width"
    tokens, wanted = shape(to_tokens.outputs[0]), (1, into[2] * into[3], into[1])
    if tokens != wanted:
        return f"tokens {tokens}, expected {wanted}: each pixel's channels together"
    assert x is not None
    return x, weight, bias
