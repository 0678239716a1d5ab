"""Where the windows of a batch lie in every tensor of a graph.

Every tensor is followed as it is with one window and with PROBE of them: one axis may differ, and it must be PROBE
times as long.  That axis holds the windows one after the other, as it does at the input, or, where a reshape merged it
with what is outside of it, several times over: (L, N, C) -> (L N, C).  Operators that mix windows without changing a
shape are left to the proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.view import GraphView, fresh, names_of, view
from pipeline.precision.types import schema_of

PROBE = 5  # windows
SMALL = 64  # elements; larger constants are weights, whose values no shape depends on

Shape = tuple[int, ...]


class Declined(Exception):
    """Why a graph stays one for a single window."""


@dataclass
class Walk:
    """The nodes in order, each mended by the fix for its operator.

    probed: shape of each tensor for PROBE windows; `shown.shapes` has the ones for one window.
    outer: how many times over the axis of the windows holds all of them, where not once.
    computed: values, for PROBE windows, of the shapes that are now computed at run time.
    """

    shown: GraphView
    fixes: Mapping[str, Callable[[Walk, onnx.NodeProto], None]]
    probed: dict[str, Shape]
    taken: set[str]
    initializers: dict[str, TensorProto]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    outer: dict[str, int] = field(default_factory=dict)
    computed: dict[str, Shape] = field(default_factory=dict)
    places: int = 0

    @classmethod
    def over(cls, model: onnx.ModelProto, fixes: Mapping[str, Callable[[Walk, onnx.NodeProto], None]]) -> Walk:
        shown = view(model)
        probed: dict[str, Shape] = {name: value.shape for name, value in shown.constants.items()}
        for name in shown.inputs:
            probed[name] = (PROBE, *shown.shapes[name][1:])
        return cls(shown, fixes, probed, names_of(model), {i.name: i for i in model.graph.initializer})

    def visit(self, node: onnx.NodeProto) -> None:
        """Mend and append `node`.  Raises Declined where its outputs do not hold the windows any more."""
        if all(self.axis(name) is None for name in node.input if name):
            self.nodes.append(node)
            self.probed |= {name: self.shown.shapes[name] for name in node.output if name}
            return
        if schema_of(node, self.shown.opset) is None:
            raise Declined(f"{label(node)}: {node.op_type} is no operator of ONNX, so what it does is not known")
        times = max(self.outer.get(name, 1) for name in node.input)
        self.outer |= dict.fromkeys(node.output, times)  # unless the fix, of a reshape, knows better
        mended = onnx.NodeProto()
        mended.CopyFrom(node)
        if node.op_type in self.fixes:
            self.fixes[node.op_type](self, mended)
        self.places += mended != node
        self.nodes.append(mended)
        self.probed |= self.infer(mended)
        for name in node.output:
            if name and not self._multiplied(name):
                raise Declined(
                    f"{label(node)}: {node.op_type} makes {self.shown.shapes[name]} of one window "
                    f"and {self.probed[name]} of {PROBE}"
                )

    def finish(self) -> onnx.ModelProto:
        """The model with the mended nodes.  Raises Declined when the logits do not come one window after another."""
        output = self.shown.output
        if self.axis(output) != 0 or self.shown.shapes[output][0] != 1:
            raise Declined(f"the logits of {PROBE} windows come out as {self.probed[output]}")
        model = onnx.ModelProto()
        model.CopyFrom(self.shown.model)
        # The inferred shapes are those of one window; every reader infers its own.
        del model.graph.node[:], model.graph.value_info[:], model.graph.initializer[:]
        model.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input}
        inputs = [value for value in model.graph.input if value.name in self.shown.inputs]  # no defaults for constants
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.graph.initializer.extend(value for name, value in self.initializers.items() if name in read)
        return model

    def axis(self, name: str) -> int | None:
        """The axis that holds the windows, or None where a tensor is the same whatever their number."""
        pairs = zip(self.shown.shapes[name], self.probed[name], strict=True)
        return next((axis for axis, (one, many) in enumerate(pairs) if one != many), None)

    def constant(self, name: str) -> list[int] | None:
        """The values of a constant shape, or None."""
        value = self.shown.constants.get(name)
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def store(self, values: Sequence[int] | np.ndarray, node: onnx.NodeProto, role: str) -> str:
        """A new constant for `node`: int64, or an array as it is."""
        name = fresh(self.taken, f"{node.output[0]}/any_batch/{role}")
        array = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        self.initializers[name] = numpy_helper.from_array(array, name)
        self.probed[name] = array.shape
        return name

    def shape_like(self, source: str, rest: Sequence[int], node: onnx.NodeProto) -> str:
        """A shape computed at run time: as many as `source` has along axis 0, then `rest`."""
        sizes, count, shape = (
            fresh(self.taken, f"{node.output[0]}/any_batch/{role}") for role in ("sizes", "count", "shape")
        )
        self.nodes.append(helper.make_node("Shape", [source], [sizes], sizes))
        self.nodes.append(helper.make_node("Gather", [sizes, self.store([0], node, "first")], [count], count, axis=0))
        parts = [count, self.store(rest, node, "rest")]
        self.nodes.append(helper.make_node("Concat", parts, [shape], shape, axis=0))
        self.computed[shape] = (self.probed[source][0], *rest)
        return shape

    def infer(self, node: onnx.NodeProto) -> dict[str, Shape]:
        """Shapes of the outputs for PROBE windows, by ONNX's own inference.  Raises Declined."""
        types, data = {}, {}
        for name in filter(None, node.input):
            if name in self.computed:
                data[name] = numpy_helper.from_array(np.array(self.computed[name], np.int64), name)
            elif name in self.initializers and math.prod(self.initializers[name].dims) <= SMALL:
                data[name] = self.initializers[name]
            kind = data[name].data_type if name in data else self.shown.types[name]
            types[name] = helper.make_tensor_type_proto(kind, data[name].dims if name in data else self.probed[name])
        opsets = list(self.shown.model.opset_import)
        schema = schema_of(node, self.shown.opset)
        assert schema is not None
        try:
            found = onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
        except onnx.shape_inference.InferenceError as error:
            why = " ".join(str(error).split())[:150]
            raise Declined(f"{label(node)}: {node.op_type} does not take {PROBE} windows ({why})") from error
        return {name: tuple(dim.dim_value for dim in found[name].tensor_type.shape.dim) for name in node.output if name}

    def _multiplied(self, name: str) -> bool:
        one, many = self.shown.shapes[name], self.probed[name]
        if len(one) != len(many):
            return False
        changed = [(a, b) for a, b in zip(one, many, strict=True) if a != b]
        return len(changed) == 1 and changed[0][1] == PROBE * changed[0][0]


def label(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])
