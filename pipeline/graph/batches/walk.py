"""Where the windows of a batch lie in every tensor of a graph.

Every tensor is followed as it is with one window and with PROBE of them: one axis may differ, and it must be PROBE
times as long.  That axis holds the windows one after the other, as it does at the input, or, where a reshape merged it
with what is outside of it, several times over: (L, N, C) -> (L N, C).  Operators that compute along that axis without
changing a shape are declined by name; what else mixes windows is left to the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from pipeline.graph.surgery import Editor, drop_unread, integer, opset, shape
from pipeline.graph.types import schema_of

PROBE = 5  # windows
# Operators that compute along one axis and keep its length: those whose axis defaults to the last, those that normalise
# from an axis on, and those whose axis is taken to be any.
LAST = frozenset({"Softmax", "LogSoftmax", "Hardmax", "LpNormalization"})
FROM = frozenset({"LayerNormalization", "RMSNormalization"})
ANY = frozenset({"CumSum", "ReverseSequence"})
FIRST_WITH_ONE_AXIS = 13  # opset; before it Softmax and its kin took all axes from one on, by default from the second
SMALL = 64  # elements; larger constants are weights, whose values no shape depends on

Shape = tuple[int, ...]


class Declined(Exception):
    """Why a graph stays one for a single window."""


@dataclass
class Walk:
    """The nodes in order, each mended in place by the fix for its operator.

    model: with the shapes of one window inferred.  fixes: by operator; each says whether it changed the node.
    probed: shape of each tensor for PROBE windows.
    outer: how many times over the axis of the windows holds all of them, where not once.
    computed: values, for PROBE windows, of the shapes that are now computed at run time.
    """

    model: ir.Model
    fixes: Mapping[str, Callable[[Walk, ir.Node], bool]]
    probed: dict[ir.Value, Shape] = field(default_factory=dict)
    outer: dict[ir.Value, int] = field(default_factory=dict)
    computed: dict[ir.Value, Shape] = field(default_factory=dict)
    places: int = 0

    def __post_init__(self) -> None:
        self.editor = Editor(self.model, "any_batch")
        graph = self.model.graph
        self.probed |= {value: one(value) for value in graph.initializers.values()}
        self.probed |= {value: (PROBE, *one(value)[1:]) for value in graph.inputs}

    def visit(self, node: ir.Node) -> None:
        """Mend `node`.  Raises Declined where its outputs do not hold the windows any more."""
        inputs, outputs = [value for value in node.inputs if value is not None], present(node)
        if all(self.axis(value) is None for value in inputs):
            self.probed |= {value: one(value) for value in outputs}
            return
        if schema_of(node, opset(self.model)) is None:
            raise Declined(f"{label(node)}: {node.op_type} is no operator of ONNX, so what it does is not known")
        self._require_apart(node)
        times = max(self.outer.get(value, 1) for value in inputs)
        self.outer |= dict.fromkeys(outputs, times)  # unless the fix, of a reshape, knows better
        if node.op_type in self.fixes:
            self.places += self.fixes[node.op_type](self, node)
        self.probed |= dict(zip(outputs, self.infer(node), strict=True))
        for value in outputs:
            if not self._multiplied(value):
                sizes = f"{one(value)} of one window and {self.probed[value]} of {PROBE}"
                raise Declined(f"{label(node)}: {node.op_type} makes {sizes}")

    def _require_apart(self, node: ir.Node) -> None:
        """Raises Declined where `node` computes along the axis of the windows; an axis that is computed may be it."""
        along = node.inputs[0]
        if node.op_type not in LAST | FROM | ANY or along is None or (windows := self.axis(along)) is None:
            return
        rank = len(one(along))
        whole = node.op_type in FROM or (node.op_type in LAST and opset(self.model) < FIRST_WITH_ONE_AXIS)
        axis = integer(node, "axis", 1 if whole and node.op_type in LAST else -1) % rank
        given = node.inputs[1].const_value if node.op_type == "CumSum" and node.inputs[1] is not None else None
        if given is not None:
            axis = int(given.numpy().reshape(-1)[0]) % rank
        elif node.op_type in ANY:
            axis, whole = 0, True
        if axis <= windows and (whole or axis == windows):
            raise Declined(f"{label(node)}: {node.op_type} works along the axis of the windows")

    def finish(self) -> None:
        """Drop constants that nothing reads any more.  Raises Declined when the logits do not come in order."""
        (output,) = self.model.graph.outputs
        if self.axis(output) != 0 or one(output)[0] != 1:
            raise Declined(f"the logits of {PROBE} windows come out as {self.probed[output]}")
        drop_unread(self.model)

    def axis(self, value: ir.Value) -> int | None:
        """The axis that holds the windows, or None where a tensor is the same whatever their number."""
        pairs = zip(one(value), self.probed[value], strict=True)
        return next((axis for axis, (single, many) in enumerate(pairs) if single != many), None)

    def store(self, values: Sequence[int] | np.ndarray, node: ir.Node, role: str) -> ir.Value:
        """A new constant for `node`: int64, or an array as it is."""
        array = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        value = self.editor.initializer(array, f"{node.outputs[0].name}/any_batch/{role}")
        self.probed[value] = array.shape
        return value

    def shape_like(self, source: ir.Value, rest: Sequence[int], node: ir.Node) -> ir.Value:
        """A shape computed at run time, before `node`: as many as `source` has along axis 0, then `rest`."""
        rank, axis, kind = len(one(source)), [ir.AttrInt64("axis", 0)], ir.DataType.INT64
        sizes = self.editor.node(node, "Shape", [source], (rank,), dtype=kind)
        count = self.editor.node(node, "Gather", [sizes, self.store([0], node, "first")], (1,), axis, dtype=kind)
        parts = [count, self.store(rest, node, "rest")]
        made = self.editor.node(node, "Concat", parts, (1 + len(rest),), axis, dtype=kind)
        self.computed[made] = (self.probed[source][0], *rest)
        return made

    def infer(self, node: ir.Node) -> list[Shape]:
        """Shapes of the outputs for PROBE windows, by ONNX's own inference.  Raises Declined."""
        inputs = {str(value.name): value for value in node.inputs if value is not None}
        data = {name: known for name, value in inputs.items() if (known := self._known(value)) is not None}
        types = {
            name: helper.make_tensor_type_proto(
                value.dtype or ir.DataType.UNDEFINED, data[name].dims if name in data else self.probed[value]
            )
            for name, value in inputs.items()
        }
        opsets = [helper.make_opsetid(*entry) for entry in self.model.opset_imports.items()]
        schema = schema_of(node, opset(self.model))
        assert schema is not None
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), types, data, opset_imports=opsets
            )
        except onnx.shape_inference.InferenceError as error:
            why = " ".join(str(error).split())[:150]
            raise Declined(f"{label(node)}: {node.op_type} does not take {PROBE} windows ({why})") from error
        shapes = [found[str(value.name)].tensor_type.shape for value in present(node)]
        return [tuple(dim.dim_value for dim in sizes.dim) for sizes in shapes]

    def _known(self, value: ir.Value) -> onnx.TensorProto | None:
        """What `value` holds, where a shape may depend on it."""
        if value in self.computed:
            return numpy_helper.from_array(np.array(self.computed[value], np.int64))
        known = value.const_value
        if known is None or known.size > SMALL:
            return None
        return ir.to_proto(ir.tensor(known.numpy(), known.dtype))  # in memory, wherever it was

    def _multiplied(self, value: ir.Value) -> bool:
        single, many = one(value), self.probed[value]
        if len(single) != len(many):
            return False
        changed = [(a, b) for a, b in zip(single, many, strict=True) if a != b]
        return len(changed) == 1 and changed[0][1] == PROBE * changed[0][0]


def one(value: ir.Value) -> Shape:
    """The shape for one window.  Raises Declined where it is not known."""
    found = shape(value)
    if found is None:
        raise Declined(f"{value.name}: its shape is not known")
    return found


def label(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)


def present(node: ir.Node) -> list[ir.Value]:
    """The outputs, less the optional ones that are left out."""
    return [value for value in node.outputs if value.name]
