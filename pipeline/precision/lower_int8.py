"""Write an INT8 plan into the graph as explicit Q/DQ, in the form that TensorRT and OpenVINO fuse.

Activations: one QuantizeLinear/DequantizeLinear pair per tensor, shared by all quantised readers; where the tensor has only been
moved (Reshape, Transpose) since it was computed, the pair stands before the moves, so that bytes are moved and the
quantisation fuses into the producer.  Weights: int8 constants with one scale per output channel and a DequantizeLinear.
Biases, and everything else, stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.ranges import Ranges
from pipeline.graph import OnnxGraph
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import weight_axis
from pipeline.precision.quantise import quantise, scale_from_amax, weight_scales
from pipeline.precision.view import MOVES, GraphView, fresh, names_of, view

_STEPS = MOVES - {"Slice", "Split", "Expand"}  # one tensor in, the same values out


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
    renamed: dict[str, str] = field(default_factory=dict)  # tensor -> its dequantised twin, for those who shall read it
    weights: dict[tuple[str, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roots: dict[str, str] = {}  # tensor behind which a pair is put -> tensor whose range it takes
        self.through: set[str] = set()  # first outputs of nodes that read the dequantised twin
        for node in self.shown.nodes:
            if node.output[0] in self.quantised:
                root = self._root(node)
                self.roots.setdefault(root, node.input[0])

    def write(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.output[0] in self.quantised or node.output[0] in self.through:
            copy.input[0] = self._dequantised(node.input[0])
        if node.output[0] in self.quantised:
            copy.input[1] = self._weight(node.input[1], weight_axis(node))
        self.nodes.append(copy)

    def _root(self, node: onnx.NodeProto) -> str:
        """Climb from a quantised node's input over moves that only quantised nodes profit from."""
        name = node.input[0]
        path = []
        while True:
            source = self.shown.producer.get(name)
            if source is None or source.op_type not in _STEPS or not self._only_quantised(name):
                break
            path.append(source.output[0])
            name = source.input[0]
        self.through.update(path)
        return name

    def _only_quantised(self, name: str) -> bool:
        """Whether all that is ever computed from `name`, but for moves, is quantised."""
        if name == self.shown.output:
            return False
        for reader in self.shown.consumers.get(name, []):
            if reader.op_type in _STEPS:
                if not self._only_quantised(reader.output[0]):
                    return False
            elif reader.output[0] not in self.quantised or reader.input[0] != name:
                return False
        return True

    def _dequantised(self, name: str) -> str:
        if name not in self.roots:
            return name  # comes from a move that already reads the dequantised twin
        if name not in self.renamed:
            scale = self._scalar(name, self.ranges.tensors[self.roots[name]].amax)
            zero = self._zero()
            quantised = fresh(self.taken, f"{name}__int8")
            self.renamed[name] = fresh(self.taken, f"{name}__dq")
            self.nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [quantised], quantised))
            self.nodes.append(
                helper.make_node("DequantizeLinear", [quantised, scale, zero], [self.renamed[name]], self.renamed[name])
            )
        return self.renamed[name]

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

    def _scalar(self, name: str, amax: float) -> str:
        return self._store(f"{name}__scale", scale_from_amax(amax, self.stored))

    def _zero(self) -> str:
        if "" not in self.renamed:
            self.renamed[""] = self._store("int8_zero", np.zeros((), np.int8))
        return self.renamed[""]

    def _store(self, name: str, value: np.ndarray) -> str:  # type: ignore[type-arg]
        label = fresh(self.taken, name)
        self.initializers.append(numpy_helper.from_array(value, label))
        return label
