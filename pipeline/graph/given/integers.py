"""A network that is quantised already: kept as it is, in the one form that the backends read, Q/DQ around float nodes.

``QLinearConv(x, w)`` is by its definition ``Q(Conv(DQ(x), DQ(w)))``, and so are its kin, ONNX's own and ONNX Runtime's.
What moves integers in between (MaxPool, Resize, ...) is done on what they stand for: Q(DQ(x)) is x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engines.errors import DeployError
from pipeline.graph.surgery import Editor, constant, integer, number, opset, shape

_MOVES = frozenset({"MaxPool", "Resize", "Upsample", "Transpose", "Reshape", "Slice", "DepthToSpace", "SpaceToDepth"})
_INTEGERS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_PER_CHANNEL = 13  # opset, the first whose DequantizeLinear takes a scale for each channel
_DYNAMIC = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"})
_ADVICE = "give the float network with --precision int8 and --calib, or quantise it statically"


@dataclass(frozen=True)
class _Form:
    """op: the float operator.  inputs: where each tensor with its scale and zero point begins.  output: where the
    result's scale and zero point are.  bias: the int32 one, of scale x times w, or 0.
    """

    op: str
    inputs: tuple[int, ...]
    output: int
    bias: int = 0


_FORMS = {
    "QLinearConv": _Form("Conv", (0, 3), 6, 8),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6),
    "QGemm": _Form("Gemm", (0, 3), 7, 6),
    "QLinearAdd": _Form("Add", (0, 3), 6),
    "QLinearMul": _Form("Mul", (0, 3), 6),
    "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "QLinearSoftmax": _Form("Softmax", (0,), 3),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "QLinearAveragePool": _Form("AveragePool", (0,), 3),
    "QLinearConcat": _Form("Concat", (), 0),
}
_OWN = {"opset", "channels_last"}  # attributes that only ONNX Runtime's operators have


def quantised(model: ir.Model) -> str:
    """How a graph is quantised, in words; "" where its activations are floats.  Raises DeployError, by name, where it
    is quantised in a way that no engine here keeps.
    """
    ops = {node.op_type for node in model.graph}
    if dynamic := sorted(ops & _DYNAMIC):
        raise DeployError(
            f"model: is quantised dynamically ({', '.join(dynamic)}), expected floats or fixed scales; {_ADVICE}"
        )
    others = {op for op in ops if op.startswith(("QLinear", "QGemm", "QAttention", "MatMulNBits"))} - set(_FORMS)
    if others:
        raise DeployError(f"model: got {', '.join(sorted(others))}, which is not converted to Q/DQ; {_ADVICE}")
    if ops & set(_FORMS):
        return "integer operators, written as Q/DQ around floats"
    return "Q/DQ" if "QuantizeLinear" in ops else ""


def to_qdq(model: ir.Model) -> None:
    """Write integer operators as Q/DQ around float ones, in place, and weights that alone are integers as floats."""
    for node in list(model.graph):
        if node.op_type in _FORMS:
            _convert(model, node, _FORMS[node.op_type])
    for node in list(model.graph):
        if node.op_type in _MOVES and (source := _quantiser(node.inputs[0])) is not None:
            _on_floats(model, node, source)
    if not any(node.op_type == "QuantizeLinear" for node in model.graph):
        for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
            _fold_weight(model, node)


def _convert(model: ir.Model, node: ir.Node, form: _Form) -> None:
    editor, inputs = Editor(model, "qdq"), list(node.inputs)
    starts = form.inputs or tuple(range(2, len(inputs), 3))
    if integer(node, "channels_last", 0):
        raise DeployError(f"model: {node.name}: got a {node.op_type} with channels last, expected first; {_ADVICE}")
    axes = [_axis(node.op_type, start, inputs[start + 1]) for start in starts]
    if any(axis is not None for axis in axes) and opset(model) < _PER_CHANNEL:
        raise DeployError(
            f"model: {node.name}: got a scale for each channel at opset {opset(model)}, which Q/DQ has from "
            f"{_PER_CHANNEL} on; export or convert it at {_PER_CHANNEL}"
        )
    values = [
        _dequantised(editor, node, inputs[start], inputs[start + 1], inputs[start + 2], axis)
        for start, axis in zip(starts, axes, strict=True)
    ]
    if form.bias and len(inputs) > form.bias and inputs[form.bias] is not None:
        values.append(_bias(editor, node, inputs, form.bias))
    kept = [a for name, a in node.attributes.items() if name not in _OWN]
    made = editor.insert(node, form.op, values, name=f"{node.outputs[0].name}/qdq/{form.op.lower()}", shape=None,
                         attributes=kept)  # fmt: skip
    _quantise(editor, node, made, inputs[form.output], inputs[form.output + 1])


def _axis(op: str, start: int, scale: ir.Value | None) -> int | None:
    """Along which axis a weight's scales lie; None for one scale."""
    array = constant(scale)
    size = shape(scale) if array is None else array.shape
    if not size or int(np.prod(size)) == 1:
        return None
    return (0 if op == "QLinearConv" else 1) if start else 0


def _dequantised(
    editor: Editor, before: ir.Node, value: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None,
    axis: int | None = None,
) -> ir.Value:  # fmt: skip
    assert value is not None
    attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
    inputs = [value, scale] if zero is None else [value, scale, zero]
    return editor.insert(before, "DequantizeLinear", inputs, name=f"{value.name}/qdq/float", shape=value.shape,
                         attributes=attributes)  # fmt: skip


def _bias(editor: Editor, node: ir.Node, inputs: Sequence[ir.Value | None], index: int) -> ir.Value:
    """The int32 bias as floats: its scale is the product of the image's and the weight's."""
    bias, x, w = (constant(inputs[each]) for each in (index, 1, 4))
    if bias is None or x is None or w is None:
        raise DeployError(f"model: {node.name}: got a scale or a bias that is computed, expected constants; {_ADVICE}")
    product = x.astype(np.float64).reshape(-1) * w.astype(np.float64).reshape(-1)
    factor = number(node, "alpha", 1.0) if node.op_type == "QGemm" else 1.0  # Gemm multiplies products only
    made: ir.Value = editor.initializer(
        (bias.astype(np.float64) * product * factor).astype(np.float32), f"{node.outputs[0].name}/qdq/bias"
    )
    return made


def _quantise(
    editor: Editor, node: ir.Node, made: ir.Value, scale: ir.Value | None, zero: ir.Value | None
) -> None:  # fmt: skip
    old = node.outputs[0]
    inputs = [made, scale] if zero is None else [made, scale, zero]
    kind = old.dtype if old.dtype in _INTEGERS else ir.DataType.UINT8
    if zero is not None and (array := constant(zero)) is not None:
        kind = ir.DataType.from_numpy(array.dtype)
    new = editor.insert(node, "QuantizeLinear", inputs, name=f"{old.name}/qdq/integer", shape=None, dtype=kind)
    editor.stand_in(old, new)
    editor.graph.remove(node, safe=True)


def _on_floats(model: ir.Model, node: ir.Node, source: ir.Node) -> None:
    """A move of integers, done on floats.  source: what made them."""
    editor, scale = Editor(model, "qdq"), source.inputs[1]
    zero = source.inputs[2] if len(source.inputs) > 2 else None
    value = _dequantised(editor, node, node.inputs[0], scale, zero)
    made = editor.insert(node, node.op_type, [value, *node.inputs[1:]], name=f"{node.outputs[0].name}/qdq/moved",
                         shape=None, attributes=node.attributes.values())  # fmt: skip
    _quantise(editor, node, made, scale, zero)


def _quantiser(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "QuantizeLinear" else None


def _fold_weight(model: ir.Model, node: ir.Node) -> None:
    """(q - zero) * scale of a constant; along an axis, or in blocks along it."""
    q, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if q is None or scale is None:
        return
    axis, block = integer(node, "axis", 1), integer(node, "block_size", 0)

    def spread(array: np.ndarray) -> np.ndarray:
        if array.size == 1:
            return array.reshape(())
        if block:
            return array.repeat(block, axis).take(range(q.shape[axis]), axis)
        return array.reshape([-1 if index == axis % q.ndim else 1 for index in range(q.ndim)])

    whole = q.astype(np.float32) - (0 if zero is None else spread(zero.astype(np.float32)))
    folded = Editor(model, "qdq").initializer((whole * spread(scale.astype(np.float32))).astype(np.float32),
                                              f"{node.outputs[0].name}/folded")  # fmt: skip
    ir.convenience.replace_all_uses_with(node.outputs[0], folded)
    model.graph.remove(node, safe=True)
