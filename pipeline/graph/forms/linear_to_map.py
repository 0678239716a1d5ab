"""``Reshape(Transpose(x W + b)) -> Conv1x1(Reshape(Transpose(x)))``: a Linear whose tokens become a map, on that map.

x are tokens (1, L, C) of a map of H x W = L pixels, W is (C, D).  The same products are summed at every pixel, so this
is exact.  Mix-FFN's first Linear stands before a depthwise convolution: as a convolution it adds its bias in its own
kernel and hands on a map; as a Linear it takes a second pass over the D channels, which are four times as many as C.

Conditions: batch 1, constant W (and b), nobody else reads what lies between, and the map has a pixel for each token.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.forms.turns import tokens_of
from pipeline.graph.surgery import Editor, Outcome, linear, shape

NAME = "linear before a map -> 1x1 convolution"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied = Editor(model, "linear_to_map"), 0
    for node in list(model.graph):
        size = shape(node.outputs[0])
        found = None if size is None or len(size) != 4 else linear(tokens_of(node.outputs[0]))
        if found is None or size is None or not _is_tokens(found.x):
            continue
        x = editor.to_map(node, found.x, (1, found.weight.shape[0], *size[2:]))
        editor.stand_in(node.outputs[0], editor.pointwise(node, x, found.weight.T, found.bias))
        applied += 1
    return Outcome(applied)


def _is_tokens(x: ir.Value) -> bool:
    size = shape(x)
    return size is not None and len(size) == 3 and size[0] == 1
