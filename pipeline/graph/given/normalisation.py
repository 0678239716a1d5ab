"""Whether a network normalises its input itself: (x / 255 - mean) / std and its like, as the first thing in a graph.

The image is followed through Cast and Transpose while it is multiplied, divided and shifted by constants.  The slope
then says which pixels are meant: what a network computes with spreads over a few units.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Float64, exact, only_use

_MOVES = frozenset({"Cast", "Transpose", "Identity"})
_MOST = 40.0  # units over which a normalised image spreads at most; 255 / ImageNet's std is 4.5
_LEAST = 0.5  # and at least; x / 255 spreads over 1
_FAR = 20.0  # a shift by more is a mean on the 0..255 scale, as Caffe subtracts it


def pixels_taken(model: ir.Model) -> float | None:
    """255.0 where the graph normalises pixels of 0..255 itself, 1.0 of 0..1, None where neither is seen."""
    value, slope, shift = model.graph.inputs[0], np.ones(1), np.zeros(1)
    found = False
    while (node := only_use(value)) is not None:
        if node.op_type in {"Mul", "Div", "Sub", "Add"} and not node.domain:
            other = _constant(node, value)
            if other is None or (node.op_type in {"Div", "Sub"} and node.inputs[0] is not value):
                break
            slope, shift = _after(node.op_type, slope, shift, other)
            found = True
        elif node.op_type not in _MOVES:
            break
        value = node.outputs[0]
    if not found or not np.isfinite([*slope, *shift]).all():
        return None
    steep = float(np.median(np.abs(slope)))
    if _LEAST <= 255 * steep <= _MOST or (steep > _LEAST and np.abs(shift).max() > _FAR * steep):
        return 255.0
    return 1.0 if steep >= _LEAST and (steep, float(np.abs(shift).max())) != (1.0, 0.0) else None


def _after(op: str, slope: Float64, shift: Float64, other: Float64) -> tuple[Float64, Float64]:
    if op == "Mul":
        return slope * other, shift * other
    if op == "Div":
        return slope / other, shift / other
    return slope, shift + other if op == "Add" else shift - other


def _constant(node: ir.Node, value: ir.Value) -> Float64 | None:
    """The one number, or one for each of a few channels, that `node` combines `value` with."""
    other = next((each for each in node.inputs if each is not value), None)
    array = exact(other)
    if array is None and other is not None and (made := other.producer()) is not None and made.op_type == "Constant":
        tensor = made.attributes.get("value")
        array = None if tensor is None else tensor.as_tensor().numpy().astype(np.float64)
    return None if array is None or array.size != max(array.shape, default=1) else array.reshape(-1)
