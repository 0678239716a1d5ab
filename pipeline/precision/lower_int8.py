"""Write an INT8 or FP8 plan into the graph as explicit Q/DQ, in the form that TensorRT and OpenVINO fuse.

Activations: one QuantizeLinear/DequantizeLinear pair per tensor, shared by all quantised readers, directly at their
input: with a Transpose between the pair and a convolution OpenVINO 2026.4 computes something else, and bytes moved
instead of floats gained nothing measurable.  Weights: int8 constants with one scale per output channel, or one for all
where the plan says so, and a DequantizeLinear.  Biases, and everything else, stay as they are.  FP8 is written alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Editor, constant, drop_unread, output_name
from pipeline.precision.attention import range_of
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import scale_axis
from pipeline.precision.quantise import FP8, NEAREST, Int8, grid, quantise, to_fp8, weight_scales
from pipeline.precision.sign import never_negative


def lower_int8(
    graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, stored: str = "fp32", learned: Mapping[str, Int8] = NEAREST
) -> OnnxGraph:
    """The graph with Q/DQ at every node that `plan` says is int8 or fp8.

    stored: the type in which `lower_float` will write the scales afterwards; they are made exact in it.
    learned: by name, the int8 values of the weights that are not rounded to the nearest.
    """
    model = graph.model.clone()
    writer = _Writer(model, plan, ranges, stored, learned=learned)
    for node in list(model.graph):
        if plan.eight_bit(output_name(node)):
            writer.write(node)
    drop_unread(model)
    return graph.then(model, f"{plan.target}: {plan.summary()}")


class _Writer:
    def __init__(
        self, model: ir.Model, plan: PrecisionPlan, ranges: Ranges, stored: str, learned: Mapping[str, Int8]
    ) -> None:
        self._editor, self._plan, self._ranges, self._stored = Editor(model), plan, ranges, stored
        self._kind = plan.target
        self._dtype = {"int8": np.dtype(np.int8), "fp8": np.dtype(FP8)}[plan.target]
        self._learned = learned
        self._pairs: dict[ir.Value, ir.Value] = {}  # tensor -> its dequantised twin
        self._weights: dict[tuple[ir.Value, int | None], ir.Value] = {}
        self._zeros: dict[int, ir.Value] = {}
        self._signs: dict[ir.Value, bool] | None = {} if plan.unsigned else None

    def write(self, node: ir.Node) -> None:
        activation, weight = node.inputs[:2]
        assert activation is not None
        assert weight is not None
        node.replace_input_with(0, self._dequantised(activation, node))
        if constant(weight) is None:  # of an attention
            node.replace_input_with(1, self._dequantised(weight, node))
        else:
            node.replace_input_with(1, self._weight(weight, scale_axis(node, self._plan), node))

    def _dequantised(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value not in self._pairs:
            editor, name = self._editor, str(value.name)
            unsigned = self._signs is not None and never_negative(value, self._signs)
            amax = range_of(value, self._ranges)
            assert amax is not None, "plans quantise what has a range"
            step, point = grid(amax, self._stored, unsigned, self._kind)
            scale = editor.initializer(step, f"{name}__scale")
            if point not in self._zeros:
                self._zeros[point] = editor.initializer(
                    np.array(point, self._dtype), f"{self._kind}_{'least' if point else 'zero'}"
                )
            zero = self._zeros[point]
            quantised = editor.insert(
                reader, "QuantizeLinear", [value, scale, zero], name=f"{name}__{self._kind}", shape=value.shape,
                dtype=ir.DataType.from_numpy(self._dtype),
            )  # fmt: skip
            self._pairs[value] = editor.insert(
                reader, "DequantizeLinear", [quantised, scale, zero], name=f"{name}__dq", shape=value.shape
            )
        return self._pairs[value]

    def _weight(self, value: ir.Value, axis: int | None, reader: ir.Node) -> ir.Value:
        key = (value, axis)
        if key not in self._weights:
            editor, name, array = self._editor, str(value.name), constant(value)
            assert array is not None
            weight = array.astype(np.float32)
            scales = weight_scales(weight, axis, self._stored, self._kind)
            if self._kind == "fp8":
                rounded = to_fp8(weight, scales, axis)
            else:
                rounded = self._learned.get(name, quantise(weight, scales, axis))
            inputs = [
                editor.initializer(rounded, f"{name}__{self._kind}"),
                editor.initializer(scales, f"{name}__scale"),
                editor.initializer(np.zeros(scales.shape, self._dtype), f"{name}__zero"),
            ]
            self._weights[key] = editor.insert(
                reader, "DequantizeLinear", inputs, name=f"{name}__dq", shape=value.shape,
                attributes=[] if axis is None else [ir.AttrInt64("axis", axis % weight.ndim)],
            )  # fmt: skip
        return self._weights[key]
