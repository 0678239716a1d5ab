"""Write an INT8 plan into the graph as explicit Q/DQ, in the form that TensorRT and OpenVINO fuse.

Activations: one QuantizeLinear/DequantizeLinear pair per tensor, shared by all quantised readers, directly at their
input: with a Transpose between the pair and a convolution OpenVINO 2026.4 computes something else, and bytes moved
instead of floats gained nothing measurable.  Weights: int8 constants with one scale per output channel and a
DequantizeLinear.  Biases, and everything else, stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Editor, constant, drop_unread, output_name
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import weight_axis
from pipeline.precision.quantise import quantise, scale_from_amax, weight_scales


def lower_int8(graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, stored: str = "fp32") -> OnnxGraph:
    """The graph with Q/DQ at every node that `plan` says is int8.

    stored: the type in which `lower_float` will write the scales afterwards; they are made exact in it.
    """
    model = graph.model.clone()
    writer = _Writer(model, ranges, stored)
    for node in list(model.graph):
        if plan.precision(output_name(node)) == "int8":
            writer.write(node)
    drop_unread(model)
    return graph.then(model, f"int8: {plan.summary()}")


class _Writer:
    def __init__(self, model: ir.Model, ranges: Ranges, stored: str) -> None:
        self._editor, self._ranges, self._stored = Editor(model), ranges, stored
        self._pairs: dict[ir.Value, ir.Value] = {}  # tensor -> its dequantised twin
        self._weights: dict[tuple[ir.Value, int], ir.Value] = {}
        self._zero: ir.Value | None = None

    def write(self, node: ir.Node) -> None:
        activation, weight = node.inputs[:2]
        assert activation is not None
        assert weight is not None
        node.replace_input_with(0, self._dequantised(activation, node))
        node.replace_input_with(1, self._weight(weight, weight_axis(node), node))

    def _dequantised(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value not in self._pairs:
            editor, name = self._editor, str(value.name)
            amax = self._ranges.tensors[name].amax
            scale = editor.initializer(scale_from_amax(amax, self._stored), f"{name}__scale")
            if self._zero is None:
                self._zero = editor.initializer(np.zeros((), np.int8), "int8_zero")
            quantised = editor.insert(
                reader, "QuantizeLinear", [value, scale, self._zero], name=f"{name}__int8", shape=value.shape,
                dtype=ir.DataType.INT8,
            )  # fmt: skip
            self._pairs[value] = editor.insert(
                reader, "DequantizeLinear", [quantised, scale, self._zero], name=f"{name}__dq", shape=value.shape
            )
        return self._pairs[value]

    def _weight(self, value: ir.Value, axis: int, reader: ir.Node) -> ir.Value:
        key = (value, axis)
        if key not in self._weights:
            editor, name, array = self._editor, str(value.name), constant(value)
            assert array is not None
            weight = array.astype(np.float32)
            scales = weight_scales(weight, axis, self._stored)
            inputs = [
                editor.initializer(quantise(weight, scales, axis), f"{name}__int8"),
                editor.initializer(scales, f"{name}__scale"),
                editor.initializer(np.zeros(scales.shape, np.int8), f"{name}__zero"),
            ]
            self._weights[key] = editor.insert(
                reader, "DequantizeLinear", inputs, name=f"{name}__dq", shape=value.shape,
                attributes=[ir.AttrInt64("axis", axis % weight.ndim)],
            )  # fmt: skip
        return self._weights[key]
