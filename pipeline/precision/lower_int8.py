"""Write an INT8 plan into the graph as explicit Q/DQ, in the form that TensorRT and OpenVINO fuse.

Activations: one QuantizeLinear/DequantizeLinear pair per tensor, shared by all quantised readers, directly at their
input: with a Transpose between the pair and a convolution OpenVINO 2026.4 computes something else, and bytes moved
instead of floats gained nothing measurable.  Weights: int8 constants with one scale per output channel and a
DequantizeLinear.  Biases, and everything else, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Editor, constant, drop_unread, output_name
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import weight_axis
from pipeline.precision.quantise import NEAREST, Int8, grid, quantise, weight_scales
from pipeline.precision.sign import never_negative


def lower_int8(
    graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, stored: str = "fp32", learned: Mapping[str, Int8] = NEAREST
) -> OnnxGraph:
    """The graph with Q/DQ at every node that `plan` says is int8.

    stored: the type in which `lower_float` will write the scales afterwards; they are made exact in it.
    learned: by name, the int8 values of the weights that are not rounded to the nearest.
    """
    model = graph.model.clone()
    writer = _Writer(model, ranges, stored, learned=learned, unsigned=plan.unsigned)
    for node in list(model.graph):
        if plan.precision(output_name(node)) == "int8":
            writer.write(node)
    drop_unread(model)
    return graph.then(model, f"int8: {plan.summary()}")


class _Writer:
    def __init__(
        self, model: ir.Model, ranges: Ranges, stored: str, learned: Mapping[str, Int8], unsigned: bool
    ) -> None:
        self._editor, self._ranges, self._stored, self._learned = Editor(model), ranges, stored, learned
        self._pairs: dict[ir.Value, ir.Value] = {}  # tensor -> its dequantised twin
        self._weights: dict[tuple[ir.Value, int], ir.Value] = {}
        self._zeros: dict[int, ir.Value] = {}
        self._signs: dict[ir.Value, bool] | None = {} if unsigned else None

    def write(self, node: ir.Node) -> None:
        activation, weight = node.inputs[:2]
        assert activation is not None
        assert weight is not None
        node.replace_input_with(0, self._dequantised(activation, node))
        node.replace_input_with(1, self._weight(weight, weight_axis(node), node))

    def _dequantised(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value not in self._pairs:
            editor, name = self._editor, str(value.name)
            unsigned = self._signs is not None and never_negative(value, self._signs)
            step, point = grid(self._ranges.tensors[name].amax, self._stored, unsigned)
            scale = editor.initializer(step, f"{name}__scale")
            if point not in self._zeros:
                self._zeros[point] = editor.initializer(
                    np.array(point, np.int8), "int8_least" if point else "int8_zero"
                )
            zero = self._zeros[point]
            quantised = editor.insert(
                reader, "QuantizeLinear", [value, scale, zero], name=f"{name}__int8", shape=value.shape,
                dtype=ir.DataType.INT8,
            )  # fmt: skip
            self._pairs[value] = editor.insert(
                reader, "DequantizeLinear", [quantised, scale, zero], name=f"{name}__dq", shape=value.shape
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
                editor.initializer(self._learned.get(name, quantise(weight, scales, axis)), f"{name}__int8"),
                editor.initializer(scales, f"{name}__scale"),
                editor.initializer(np.zeros(scales.shape, np.int8), f"{name}__zero"),
            ]
            self._weights[key] = editor.insert(
                reader, "DequantizeLinear", inputs, name=f"{name}__dq", shape=value.shape,
                attributes=[ir.AttrInt64("axis", axis % weight.ndim)],
            )  # fmt: skip
        return self._weights[key]
