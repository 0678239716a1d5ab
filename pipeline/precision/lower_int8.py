"""Write an INT8 plan into the graph as explicit Q/DQ, in the form that TensorRT and OpenVINO fuse.

Activations: one QuantizeLinear/DequantizeLinear pair per tensor, shared by all quantised readers, directly at their
input: with a Transpose between the pair and a convolution OpenVINO 2026.4 computes something else, and bytes moved
instead of floats gained nothing measurable.  Weights: int8 constants with one scale per output channel and a
DequantizeLinear.  Biases, and everything else, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.view import GraphView, fresh, names_of, view
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import weight_axis
from pipeline.precision.quantise import quantise, scale_from_amax, weight_scales


def lower_int8(graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, stored: str = "fp32") -> OnnxGraph:
    """The graph with Q/DQ at every node that `plan` says is int8.

    stored: the type in which `lower_float` will write the scales afterwards; they are made exact in it.
    """
    shown = view(graph.model)
    writer = _Writer(shown, ranges, stored, names_of(graph.model), _quantised(shown, plan))
    for node in shown.nodes:
        writer.write(node)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(writer.nodes)
    used = {name for node in writer.nodes for name in node.input}
    kept = [i for i in (*model.graph.initializer, *writer.initializers) if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return graph.then(model, f"int8: {plan.summary()}")


def _quantised(shown: GraphView, plan: PrecisionPlan) -> set[str]:
    return {node.output[0] for node in shown.nodes if plan.precision(node.output[0]) == "int8"}


@dataclass
class _Writer:
    shown: GraphView
    ranges: Ranges
    stored: str
    taken: set[str]
    quantised: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    pairs: dict[str, str] = field(default_factory=dict)  # tensor -> its dequantised twin
    weights: dict[tuple[str, int], str] = field(default_factory=dict)
    zero: str = ""

    def write(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.output[0] in self.quantised:
            copy.input[0] = self._dequantised(node.input[0])
            copy.input[1] = self._weight(node.input[1], weight_axis(node))
        self.nodes.append(copy)

    def _dequantised(self, name: str) -> str:
        if name not in self.pairs:
            scale = self._store(f"{name}__scale", scale_from_amax(self.ranges.tensors[name].amax, self.stored))
            zero = self._zero()
            quantised = fresh(self.taken, f"{name}__int8")
            self.pairs[name] = fresh(self.taken, f"{name}__dq")
            self.nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [quantised], quantised))
            self.nodes.append(
                helper.make_node("DequantizeLinear", [quantised, scale, zero], [self.pairs[name]], self.pairs[name])
            )
        return self.pairs[name]

    def _weight(self, name: str, axis: int) -> str:
        key = (name, axis)
        if key not in self.weights:
            value = self.shown.constants[name].astype(np.float32)
            scales = weight_scales(value, axis, self.stored)
            stored = self._store(f"{name}__int8", quantise(value, scales, axis))
            scale = self._store(f"{name}__scale", scales)
            zero = self._store(f"{name}__zero", np.zeros(scales.shape, np.int8))
            self.weights[key] = fresh(self.taken, f"{name}__dq")
            self.nodes.append(
                helper.make_node(
                    "DequantizeLinear", [stored, scale, zero], [self.weights[key]], self.weights[key],
                    axis=axis % value.ndim,
                )
            )  # fmt: skip
        return self.weights[key]

    def _zero(self) -> str:
        if not self.zero:
            self.zero = self._store("int8_zero", np.zeros((), np.int8))
        return self.zero

    def _store(self, name: str, value: NDArray[np.generic]) -> str:
        label = fresh(self.taken, name)
        self.initializers.append(numpy_helper.from_array(value, label))
        return label
