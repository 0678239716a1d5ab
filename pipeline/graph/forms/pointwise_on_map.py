"""``f(Transpose(Reshape(x))) -> Transpose(Reshape(f(x)))``: what is done to every value by itself, on the map.

x is a map (1, C, H, W), its tokens are (1, HW, C).  f is an activation, or part of one that is written out (GELU: Div,
Erf, Add, Mul), and moving values does not change them: bit for bit the same.  transformers' Mix-FFN turns the map into
tokens before GELU; turned after it, the compiler has GELU in the kernel of the convolution.

Conditions: batch 1; every operand is a number or tokens of one and the same kind of map.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.forms.turns import map_of
from pipeline.graph.surgery import Editor, Outcome, constant, shape

NAME = "pointwise operations on the map before it is turned"
_POINTWISE = frozenset(
    {"Add", "Div", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"}
)


def rewrite(model: ir.Model) -> Outcome:
    editor, applied = Editor(model, "pointwise_on_map"), 0
    for node in list(model.graph):
        maps = _maps(node)
        if not maps:
            continue
        size = next(shape(x) for value, x in maps if x is not None) or ()
        inputs = [value if x is None else x for value, x in maps]
        made = editor.node(node, node.op_type, inputs, size, node.attributes.values())
        editor.stand_in(node.outputs[0], editor.to_tokens(node, made))
        applied += 1
    return Outcome(applied)


def _maps(node: ir.Node) -> list[tuple[ir.Value, ir.Value | None]]:
    """Each operand with the map that it is the tokens of, None for a number; empty where it does not fit."""
    if node.op_type not in _POINTWISE or node.domain or len(node.outputs) != 1:
        return []
    found: list[tuple[ir.Value, ir.Value | None]] = []
    for value in node.inputs:
        if value is None:
            return []
        number = constant(value)
        x = None if number is not None and number.size == 1 and number.ndim <= 3 else map_of(value)
        if x is None and (number is None or number.size != 1):
            return []
        found.append((value, x))
    sizes = {shape(x) for _, x in found if x is not None}
    return found if len(sizes) == 1 else []
