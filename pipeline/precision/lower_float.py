"""Write a float precision plan into the graph: a strongly typed ONNX, every tensor's type explicit.

Constants are converted, a Cast stands at each border between precisions (one per tensor and type), and the interface
stays float32.  Nothing is left for a builder flag to decide.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.errors import DeployError
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.view import GraphView, constants_to_initializers, fresh, names_of, view
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.types import FLOATS, OPSET_QDQ, OPSET_QDQ_FP32, OPSETS, Float, allowed, schema_of, variables


def prepare(graph: OnnxGraph, target: str, qdq: bool = False) -> OnnxGraph:
    """The graph at an opset that can be typed in `target`, with constants as initializers; plans are made on this.

    qdq: whether QuantizeLinear will be added, with scales in `target`.
    """
    needed = max(OPSETS.get(target, 0), (OPSET_QDQ if target != "fp32" else OPSET_QDQ_FP32) if qdq else 0)
    model = at_opset(constants_to_initializers(graph.model), needed)
    return graph.then(model, f"prepared for {target}")


def at_opset(model: onnx.ModelProto, needed: int) -> onnx.ModelProto:
    """`model`, converted to the opset `needed` unless it is at or above it."""
    now = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if now >= needed:
        return model
    try:
        return onnx.version_converter.convert_version(model, needed)
    except (onnx.version_converter.ConvertError, RuntimeError) as error:
        raise DeployError(
            f"precision: cannot bring the graph to opset {needed}: {error}; export it at {needed}"
        ) from error


def lower_float(graph: OnnxGraph, plan: PrecisionPlan) -> OnnxGraph:
    """The graph typed as `plan` says.  `plan` must have been made on this very graph (see `prepare`)."""
    shown = view(graph.model)
    writer = _Writer(shown, FLOATS[plan.target], names_of(graph.model))
    for node in shown.nodes:
        writer.write(node, plan)
    model = writer.finish()
    return graph.then(model, f"lowered to {plan.target}: {plan.summary()}")


@dataclass
class _Writer:
    shown: GraphView
    target: Float
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)  # type that each computed FLOAT tensor now has
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    constants: dict[tuple[str, int], str] = field(default_factory=dict)
    initializers: list[TensorProto] = field(default_factory=list)

    def write(self, node: onnx.NodeProto, plan: PrecisionPlan) -> None:
        kind = self._kind(node, plan)
        schema = schema_of(node, self.shown.opset)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        in_vars = variables(schema.inputs, len(node.input)) if schema is not None and node.input else []
        for index, name in enumerate(node.input):
            if not name or not self.shown.is_float(name):
                continue
            fits = schema is not None and allowed(schema, in_vars[index], kind)
            copy.input[index] = self._as(name, kind.onnx_type if fits else TensorProto.FLOAT)
        if node.op_type == "Cast" and self.shown.is_float(node.output[0]):
            next(a for a in copy.attribute if a.name == "to").i = kind.onnx_type
        self.nodes.append(copy)
        out_vars = variables(schema.outputs, len(node.output)) if schema is not None else []
        for index, name in enumerate(node.output):
            if name and self.shown.is_float(name):
                typed = schema is not None and allowed(schema, out_vars[index], kind)
                self.made[name] = kind.onnx_type if typed else TensorProto.FLOAT

    def finish(self) -> onnx.ModelProto:
        self._keep_output_float()
        model = onnx.ModelProto()
        model.CopyFrom(self.shown.model)
        graph = model.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        others = [i for i in graph.initializer if i.data_type != TensorProto.FLOAT and i.name in read]
        del graph.initializer[:]
        graph.initializer.extend([*others, *self.initializers])
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        _check_typed(inferred)
        return inferred

    def _kind(self, node: onnx.NodeProto, plan: PrecisionPlan) -> Float:
        planned = plan.precision(node.output[0])
        if planned is not None:
            return FLOATS[planned]
        # A node without a float output (QuantizeLinear, Shape, comparisons) reads its tensor in whatever type it has.
        source = next((name for name in self.shown.reads(node) if self.shown.is_float(name)), None)
        here = self.made.get(source or "", TensorProto.FLOAT)
        return self.target if here == self.target.onnx_type else FLOATS["fp32"]

    def _as(self, name: str, wanted: int) -> str:
        """`name` in the type `wanted`: the tensor itself, its one Cast, or a converted constant."""
        if name in self.shown.constants:
            return self._constant(name, wanted)
        if self.made.get(name, TensorProto.FLOAT) == wanted:
            return name
        key = (name, wanted)
        if key not in self.casts:
            suffix = "fp32" if wanted == TensorProto.FLOAT else self.target.name
            self.casts[key] = fresh(self.taken, f"{name}__{suffix}")
            self.nodes.append(helper.make_node("Cast", [name], [self.casts[key]], self.casts[key], to=wanted))
        return self.casts[key]

    def _constant(self, name: str, wanted: int) -> str:
        key = (name, wanted)
        if key not in self.constants:
            value: NDArray[np.generic] = self.shown.constants[name]
            label = name
            if wanted != TensorProto.FLOAT:
                with np.errstate(over="ignore"):  # without islands: the gate sees the infinity
                    value = value.astype(self.target.dtype)
                label = fresh(self.taken, f"{name}__{self.target.name}")
            self.constants[key] = label
            self.initializers.append(numpy_helper.from_array(value, label))
        return self.constants[key]

    def _keep_output_float(self) -> None:
        output = self.shown.output
        if self.made.get(output, TensorProto.FLOAT) == TensorProto.FLOAT:
            return
        inner = fresh(self.taken, f"{output}__{self.target.name}")
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output:
                        names[index] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [output], f"{output}__fp32", to=TensorProto.FLOAT))


def _check_typed(model: onnx.ModelProto) -> None:
    known = {v.name for v in (*model.graph.value_info, *model.graph.output) if v.type.tensor_type.elem_type}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                raise DeployError(
                    f"precision: tensor {name!r} of {node.op_type} has no type; report this with the model"
                )
