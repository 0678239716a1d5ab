"""An ONNX graph with its tensors at hand: who makes them, who reads them, what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engines.errors import DeployError

# Nodes that only move values: every output value is an input value.
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Expand"})


@dataclass(frozen=True)
class GraphView:
    """A static-shape graph.  Rebuild it after changing `model`.

    constants: float and integer initializers as arrays, by name.  types, shapes: of every tensor, by name.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    opset: int
    producer: dict[str, onnx.NodeProto] = field(default_factory=dict)
    consumers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return str(self.model.graph.output[0].name)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(v.name for v in self.model.graph.input if v.name not in self.constants)

    def reads(self, node: onnx.NodeProto) -> Iterator[str]:
        """Names of the inputs that are there and are computed, not constant."""
        return (name for name in node.input if name and name not in self.constants)

    def is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT


def view(model: onnx.ModelProto) -> GraphView:
    """Raises DeployError on control flow, whose tensors have no one type, and on shapes that do not fit."""
    graph = model.graph
    for node in graph.node:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute
        ):
            raise DeployError(
                f"precision: got a {node.op_type} node ({node.name or node.output[0]}), expected a graph without "
                "control flow; export the model with fixed shapes"
            )
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise DeployError(f"precision: shapes do not fit together: {' '.join(str(error).split())[:300]}") from error
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    result = GraphView(model, tuple(graph.node), opset)
    for initializer in graph.initializer:
        result.constants[initializer.name] = numpy_helper.to_array(initializer)
        result.types[initializer.name] = initializer.data_type
        result.shapes[initializer.name] = tuple(initializer.dims)
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        result.types.setdefault(value.name, value.type.tensor_type.elem_type)
        result.shapes.setdefault(value.name, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
    for node in graph.node:
        for name in node.output:
            if name:
                result.producer[name] = node
        for name in dict.fromkeys(node.input):
            if name:
                result.consumers.setdefault(name, []).append(node)
    return result


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """Value of an attribute, or `default`."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def constants_to_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every Constant node is an initializer, so that later passes see one kind of constant."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = []
    for node in copy.graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if not isinstance(value, TensorProto):
            kept.append(node)
            continue
        initializer = copy.graph.initializer.add()
        initializer.CopyFrom(value)
        initializer.name = node.output[0]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def fresh(taken: set[str], name: str) -> str:
    """`name`, or `name` with a number, whichever is not in `taken`; adds it there."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def names_of(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    taken = {initializer.name for initializer in graph.initializer} | {value.name for value in graph.input}
    return taken | {name for node in graph.node for name in node.output}
