"""Multiply-adds of a graph: the work that no implementation can avoid, whatever it spends on moving data."""

from __future__ import annotations

import math

import onnx_ir as ir

from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import integer, shape


def count_macs(graph: OnnxGraph) -> int:
    """Multiply-adds of one window: convolutions and matrix products; elementwise work is not counted."""
    return sum(macs_by_node(graph.model).values())


def macs_by_node(model: ir.Model) -> dict[str, int]:
    """Multiply-adds of each Conv, ConvTranspose, MatMul and Gemm, by the name of its first output."""
    layers = (node for node in model.graph if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"))
    return {str(node.outputs[0].name): _macs(node) for node in layers}


def _macs(node: ir.Node) -> int:
    first, weight, out = (shape(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
    assert first is not None
    assert weight is not None
    assert out is not None
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        return math.prod(out) * first[0 if integer(node, "transA", 0) else 1]
    return math.prod(out) * first[-1]
