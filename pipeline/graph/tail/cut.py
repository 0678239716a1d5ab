"""A graph cut before its tail: the maps in place of the logits, in the form that costs NVIDIA's compiler nothing.

As several outputs, each pixel's channels together.  One output that is a Concat of them is a copy (30 of 957 MB in
B0), a map that is also read inside is copied where it is an output (13 MB), and a transposed one is transposed by a
kernel of its own; tokens are written by the kernel that makes them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Conv, Editor, constant, drop_unread, integers
from pipeline.graph.tail.ending import DecoderTail

OUTPUT = "tail_{}"  # sorted by name they are in the order in which the kernel takes them


def cut(graph: OnnxGraph, ending: DecoderTail, types: OnnxGraph) -> ir.Model | str:
    """`graph`, lowered or not, with the maps in place of the logits; or why it cannot be.

    Each is (1, rows, columns, channels) in memory, in the type that it has.  types: a graph of the same tensors that
    knows their types.
    """
    known = {value.name: value for node in types.model.graph for value in node.outputs}
    kinds = {known[name].dtype for name in ending.maps if name in known}
    if len(kinds) != 1 or not {*ending.maps} <= {*known}:
        return f"its maps are of {len(kinds)} types"
    model, kind = graph.model.clone(), kinds.pop()
    if kind not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"its maps are {'of no type' if kind is None else kind.name.lower()}, expected float or float16"
    editor, values = Editor(model, "tail"), {value.name: value for node in model.graph for value in node.outputs}
    outputs = []
    for index, (name, size) in enumerate(zip(ending.maps, ending.tail.shape.outputs, strict=True)):
        made = _by_pixel(editor, values[name], kind, projected=not (index == 0 and ending.tail.shape.inputs))
        outputs.append((made, size))
    model.graph.outputs.clear()
    for index, (made, (rows, columns, channels)) in enumerate(outputs):
        tokens = made.producer() is not None and made.producer().op_type != "Transpose"  # type: ignore[union-attr]
        dims = (1, rows * columns, channels) if tokens else (1, rows, columns, channels)
        made.name, made.shape, made.type = editor.free(OUTPUT.format(index)), ir.Shape(dims), ir.TensorType(kind)
        model.graph.outputs.append(made)
    passes.RemoveUnusedNodesPass()(model)
    drop_unread(model)
    return model


def _by_pixel(editor: Editor, value: ir.Value, kind: ir.DataType, projected: bool) -> ir.Value:
    """The map `value` (1, C, H, W) with each pixel's channels together.

    Where it was folded from tokens (1, HW, C), or is a 1x1 convolution of what was, these are used: the compiler then
    writes an output without a transposition of its own.
    """
    pointwise = conv_of_any_type(value.producer()) if projected else None
    tokens = _tokens(value if pointwise is None else pointwise.inputs[0])
    if tokens is None or (projected and pointwise is None):
        attribute = ir.AttrInt64s("perm", [0, 2, 3, 1])
        return editor.insert(None, "Transpose", [value], name=f"{value.name}/tail", shape=None, dtype=kind,
                             attributes=[attribute])  # fmt: skip
    if pointwise is None:
        return editor.insert(None, "Identity", [tokens], name=f"{value.name}/tail", shape=None, dtype=kind)
    stored = constant(pointwise.inputs[1])
    assert stored is not None
    weight = editor.initializer(np.ascontiguousarray(stored[:, :, 0, 0].T), f"{value.name}/tail/weight")
    made = editor.insert(None, "MatMul", [tokens, weight], name=f"{value.name}/tail/matmul", shape=None, dtype=kind)
    if len(pointwise.inputs) < 3 or pointwise.inputs[2] is None:
        return made
    return editor.insert(
        None, "Add", [made, pointwise.inputs[2]], name=f"{value.name}/tail/add", shape=None, dtype=kind
    )


def conv_of_any_type(node: ir.Node | None) -> ir.Node | None:
    """A 1x1 convolution whose weight is a constant of any float type, not one that is dequantised."""
    if node is None or node.op_type != "Conv":
        return None
    stored = constant(node.inputs[1])
    return node if stored is not None and stored.ndim == 4 and Conv(node, stored).is_pointwise else None


def _tokens(value: ir.Value | None) -> ir.Value | None:
    """x (1, HW, C) where `value` is Reshape(Transpose(x))."""
    unflatten = None if value is None else value.producer()
    back = unflatten.inputs[0] if unflatten is not None and unflatten.op_type == "Reshape" else None
    transpose = None if back is None else back.producer()
    if transpose is None or transpose.op_type != "Transpose" or integers(transpose, "perm", ()) != (0, 2, 1):
        return None
    return transpose.inputs[0]
