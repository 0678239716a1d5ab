"""A network that is quantised dynamically, as the float network that it stands for.

``DynamicQuantizeLinear`` rounds an activation to the 256 steps that it just spans.  No engine here does that, and none
needs to: x is scale * (q - zero) but for rounding, so the integer products are those of x itself with the weights less
their zero, and the scale of x is one.  Weights keep the values that they were rounded to.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Editor, constant

_FLOAT = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
_ROUNDS = "DynamicQuantizeLinear"


def undo_dynamic(model: ir.Model) -> str:
    """Write the products of dynamically quantised activations as float ones, in place.

    Returns in words what was undone, "" for nothing.  What it does not know how to undo stays.
    """
    editor, before = Editor(model, "dynamic"), {node.op_type for node in model.graph}
    floats = {node.outputs[0]: node.inputs[0] for node in model.graph if node.op_type == _ROUNDS}
    for node in [node for node in model.graph if node.op_type in _FLOAT]:
        zeros = [node.inputs[2 + side] if len(node.inputs) > 2 + side else None for side in (0, 1)]
        factors = [_as_float(editor, node, side, zeros[side], floats) for side in (0, 1)]
        reads = [user for user, _ in node.outputs[0].uses()]
        if None in factors or any(user.op_type != "Cast" for user in reads):
            continue
        made = editor.insert(
            node, _FLOAT[node.op_type], [each for each in factors if each is not None], shape=None,
            name=f"{node.outputs[0].name}/float", attributes=node.attributes.values(),
        )  # fmt: skip
        editor.stand_in(node.outputs[0], made)
        model.graph.remove(node, safe=True)
    for node in [node for node in model.graph if node.op_type == _ROUNDS]:
        rounded, scale, zero = node.outputs
        if not rounded.uses() and not zero.uses():
            one = editor.initializer(np.array(1, np.float32), f"{scale.name}/one")
            ir.convenience.replace_all_uses_with(scale, one)
            model.graph.remove(node, safe=True)
    left = {node.op_type for node in model.graph}
    undone = sorted((before - left) & {*_FLOAT, _ROUNDS})
    return ", ".join(undone)


def _as_float(
    editor: Editor, node: ir.Node, side: int, zero: ir.Value | None, floats: dict[ir.Value, ir.Value | None]
) -> ir.Value | None:  # fmt: skip
    """A factor as floats: the activation before it was rounded, or a weight less its zero; None of anything else."""
    value = node.inputs[side]
    if value in floats:
        return floats[value]
    array, offset = constant(value), constant(zero)
    if array is None or (zero is not None and offset is None):
        return None
    shift = np.float32(0) if offset is None else offset.astype(np.float32)
    if shift.ndim and node.op_type == "ConvInteger":  # of each output channel
        shift = shift.reshape(-1, *[1] * (array.ndim - 1))
    elif shift.ndim and side == 0:  # of each row
        shift = shift.reshape(-1, 1)
    return editor.initializer(array.astype(np.float32) - shift, f"{node.outputs[0].name}/{'ab'[side]}")
