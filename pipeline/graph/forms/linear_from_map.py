"""``Transpose(Reshape(x)) W + b -> Transpose(Reshape(Conv1x1(x)))``: a Linear over the tokens of a map, on that map.

x is a map (1, C, H, W), its tokens are (1, HW, C), W is (C, D).  The same products are summed at every pixel, so this
is exact.  Mix-FFN's second Linear reads what GELU made of a map; as a convolution it leaves it where it is, so that
GELU stays in the kernel of the convolution before it.

Conditions: batch 1, constant W (and b), and nobody else reads the tokens.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.forms.turns import map_of
from pipeline.graph.surgery import Editor, Outcome, linear_at, only_producer

NAME = "linear after a map -> 1x1 convolution"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "linear_from_map"), 0, []
    for node in list(model.graph):
        found = linear_at(node)
        x = None if found is None else map_of(found.x)
        if found is None or x is None:
            continue
        if only_producer(found.x) is None:
            declined.append(f"{node.name}: others read the tokens too")
            continue
        made = editor.pointwise(node, x, found.weight.T, found.bias)
        editor.stand_in(node.outputs[0], editor.to_tokens(node, made))
        applied += 1
    return Outcome(applied, tuple(declined))
