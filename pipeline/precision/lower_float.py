"""Write a float precision plan into the graph: a strongly typed ONNX, every tensor's type explicit.

Constants are converted, a Cast stands at each border between precisions (one per tensor and type), and the interface
stays float32.  Nothing is left for a builder flag to decide.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from engines.errors import DeployError
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import at_opset
from pipeline.graph.surgery import (
    Editor,
    computed,
    constant,
    drop_unread,
    is_float,
    opset,
    output_name,
    refuse_control_flow,
    set_type,
)
from pipeline.graph.types import FLOATS, OPSET_QDQ, OPSET_QDQ_FP32, OPSETS, Float, allowed, schema_of, variables
from pipeline.precision.plan import PrecisionPlan

FP32 = FLOATS["fp32"].onnx_type


def prepare(graph: OnnxGraph, target: str, qdq: bool = False) -> OnnxGraph:
    """The graph at an opset that can be typed in `target`, with constants as initializers; plans are made on this.

    qdq: whether QuantizeLinear will be added, with scales in `target`.
    Raises DeployError on control flow, whose tensors have no one type.
    """
    refuse_control_flow(graph.model)
    model = graph.model.clone()
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    needed = max(OPSETS.get(target, 0), (OPSET_QDQ if target != "fp32" else OPSET_QDQ_FP32) if qdq else 0)
    return graph.then(at_opset(model, needed) if opset(model) < needed else model, f"prepared for {target}")


def lower_float(graph: OnnxGraph, plan: PrecisionPlan) -> OnnxGraph:
    """The graph typed as `plan` says.  `plan` must have been made on this very graph (see `prepare`)."""
    model = graph.model.clone()
    writer = _Writer(model, FLOATS[plan.target])
    for node in list(model.graph):
        writer.write(node, plan)
    writer.keep_output_float()
    drop_unread(model)
    _check_typed(model)
    return graph.then(model, f"lowered to {plan.target}: {plan.summary()}")


class _Writer:
    """Types one node after the other, in graph order."""

    def __init__(self, model: ir.Model, target: Float) -> None:
        self._model, self._target = model, target
        self._editor, self._opset = Editor(model), opset(model)
        values = (value for node in model.graph for value in (*node.inputs, *node.outputs))
        self._floats = {value for value in values if is_float(value)}
        self._twins: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}  # the Cast of a tensor, or the constant, by type

    def write(self, node: ir.Node, plan: PrecisionPlan) -> None:
        kind = self._kind(node, plan)
        schema = schema_of(node, self._opset)
        in_vars = variables(schema.inputs, len(node.inputs)) if schema is not None and node.inputs else []
        for index, value in enumerate(node.inputs):
            if value is not None and value in self._floats:
                fits = schema is not None and allowed(schema, in_vars[index], kind)
                node.replace_input_with(index, self._as(value, kind.onnx_type if fits else FP32, node))
        if node.op_type == "Cast" and node.outputs[0] in self._floats:
            node.attributes["to"] = ir.AttrInt64("to", kind.onnx_type)
        out_vars = variables(schema.outputs, len(node.outputs)) if schema is not None else []
        for index, value in enumerate(node.outputs):
            if value in self._floats and schema is not None and allowed(schema, out_vars[index], kind):
                set_type(value, kind.onnx_type)

    def keep_output_float(self) -> None:
        output = self._model.graph.outputs[0]
        if output.dtype == FP32:
            return
        name = str(output.name)
        twin = self._editor.insert(
            None, "Cast", [output], name=f"{name}__fp32", shape=output.shape, attributes=[ir.AttrInt64("to", FP32)]
        )
        output.name, twin.name = self._editor.free(f"{name}__{self._target.name}"), name
        self._model.graph.outputs[0] = twin

    def _kind(self, node: ir.Node, plan: PrecisionPlan) -> Float:
        planned = plan.precision(output_name(node))
        if planned is not None:
            return FLOATS[planned]
        # A node without a float output (QuantizeLinear, Shape, comparisons) reads its tensor in whatever type it has.
        here = next((value.dtype for value in computed(node) if value in self._floats), FP32)
        return self._target if here == self._target.onnx_type else FLOATS["fp32"]

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        """`value` in the type `wanted`: itself, its one Cast, or a converted constant."""
        if value.dtype == wanted:
            return value
        key = (value, wanted)
        if key not in self._twins:
            name = f"{value.name}__{'fp32' if wanted == FP32 else self._target.name}"
            array = constant(value)
            if array is None:
                self._twins[key] = self._editor.insert(
                    reader, "Cast", [value], name=name, shape=value.shape, dtype=wanted,
                    attributes=[ir.AttrInt64("to", wanted)],
                )  # fmt: skip
            else:
                with np.errstate(over="ignore"):  # without islands: the gate sees the infinity
                    self._twins[key] = self._editor.initializer(array.astype(self._target.dtype), name)
        return self._twins[key]


def _check_typed(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            if value.name and not value.dtype:
                raise DeployError(
                    f"precision: tensor {value.name!r} of {node.op_type} has no type; report this with the model"
                )
