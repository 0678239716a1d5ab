"""Multiply-adds of a graph: the work that no implementation can avoid, whatever it spends on moving data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from pipeline.graph.onnx_graph import OnnxGraph

Shape = tuple[int, ...]


def count_macs(graph: OnnxGraph) -> int:
    """Multiply-adds of one window: convolutions and matrix products; elementwise work is not counted."""
    return sum(macs_by_node(graph.model).values())


def macs_by_node(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-adds of each Conv, ConvTranspose, MatMul and Gemm, by the name of its first output."""
    shapes = tensor_shapes(model)
    return {
        node.output[0]: _macs(node, shapes)
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
    }


def tensor_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The static shape of every tensor.  Initializers included."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes: dict[str, Shape] = {init.name: tuple(init.dims) for init in model.graph.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return shapes


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    first, weight, out = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * first[0 if transposed else 1]
    return math.prod(out) * first[-1]
