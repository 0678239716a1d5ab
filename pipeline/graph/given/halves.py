"""A network stored in half or double precision, in float32: what the other precisions are lowered from.

Every half is a float32 number, so weights keep their values; what is computed is rounded less.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import integer, set_type

_OTHERS = {ir.DataType.FLOAT16: "half", ir.DataType.BFLOAT16: "bfloat16", ir.DataType.DOUBLE: "double"}
_TYPED = ("to", "dtype", "saturate_to")  # attributes that name the type of an output


def as_float32(model: ir.Model) -> str:
    """Retype every half and double of the graph, in place.

    Returns what weights, image or output were stored in, "" for float32: a Cast there and back is only undone.
    """
    found = {value.dtype for value in model.graph.initializers.values()} | {value.dtype for value in model.graph.inputs}
    found |= {value.dtype for value in model.graph.outputs}
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            _retype(value)
        for node in graph:
            _retype_node(node)
            for value in node.outputs:
                if value.dtype in _OTHERS:
                    set_type(value, ir.DataType.FLOAT)
        for value in (*graph.inputs, *graph.outputs):
            if value.dtype in _OTHERS:
                set_type(value, ir.DataType.FLOAT)
    return ", ".join(sorted(_OTHERS[kind] for kind in found if kind in _OTHERS))


def as_stored(kind: ir.DataType) -> ir.DataType:
    """What a value of that type in the file is here."""
    return ir.DataType.FLOAT if kind in _OTHERS else kind


def _retype(value: ir.Value) -> None:
    if value.const_value is not None and value.const_value.dtype in _OTHERS:
        array = value.const_value.numpy().astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        set_type(value, ir.DataType.FLOAT)


def _retype_node(node: ir.Node) -> None:
    """What the node's own attributes name."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _OTHERS:
            array = attribute.as_tensor().numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
        elif name in _TYPED and attribute.type == ir.AttributeType.INT and integer(node, name, 0) in _OTHERS:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
