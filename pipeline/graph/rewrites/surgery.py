"""What the rewrites share: reading constants, following single uses, and putting one subgraph in another's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What one rule did: the number of places, and for each place that looked right but was not, the reason."""

    applied: int
    declined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conv:
    """A Conv node with constant weights, read once.  weight: (M, C, kh, kw) float64; bias: (M,), zero where absent."""

    node: ir.Node
    weight: Float64
    bias: Float64

    @property
    def is_pointwise(self) -> bool:
        """1x1, one group, no stride, no padding: each pixel's channels are mixed, and no two pixels."""
        node = self.node
        return (
            self.weight.shape[2:] == (1, 1)
            and integer(node, "group", 1) == 1
            and set(integers(node, "strides", (1, 1))) == {1}
            and not any(integers(node, "pads", (0, 0, 0, 0)))
            and text(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        )


def conv(node: ir.Node | None) -> Conv | None:
    """`node` as a 2-d convolution with constant weight and bias, or None."""
    if node is None or node.op_type != "Conv" or node.domain:
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 4:
        return None
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return Conv(node, weight, np.zeros(weight.shape[0]))
    bias = constant(node.inputs[2])
    return None if bias is None else Conv(node, weight, bias)


def constant(value: ir.Value | None) -> NDArray[np.float64] | None:
    """The value of a float32 or integer initializer, in float64; None when it is of another type, or made at run time.

    Of another type, because a graph that is lowered already has decided where it rounds.
    """
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    if value.const_value.dtype not in (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32):
        return None
    return np.asarray(value.const_value.numpy(), np.float64)


def scalar(value: ir.Value | None) -> float | None:
    """The number that `value` holds, if it is a constant of one element."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape, or None where a dimension is unknown."""
    if value is None or value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def only_use(value: ir.Value | None) -> ir.Node | None:
    """The node that reads `value`, if exactly one does and the graph does not output it."""
    if value is None or value.is_graph_output():
        return None
    uses = value.uses()
    return next(iter(uses))[0] if len(uses) == 1 else None


def only_producer(value: ir.Value | None) -> ir.Node | None:
    """The node that made `value`, if nobody else reads it: then the node may be changed or dropped."""
    return None if only_use(value) is None or value is None else value.producer()


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(default) if attribute is None else tuple(int(v) for v in attribute.as_ints())


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


class Editor:
    """Adds nodes and initializers to one graph under names that say where they come from and are not taken."""

    def __init__(self, model: ir.Model, rule: str) -> None:
        self.graph = model.graph
        self.rule = rule
        self._taken = {node.name for node in model.graph} | set(model.graph.initializers)
        self._taken |= {value.name for node in model.graph for value in node.outputs}

    def initializer(self, array: NDArray[np.generic], name: str) -> ir.Value:
        value = ir.Value(name=self._free(name), const_value=None)
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(value.const_value.dtype)
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        out_shape: Sequence[int],
        attributes: dict[str, ir.Attr] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """A new node in front of `before`; returns its output."""
        name = self._free(f"{before.name or before.op_type}/{self.rule}/{op_type.lower()}")
        made = ir.Node("", op_type, inputs, list((attributes or {}).values()), name=name, num_outputs=1)
        output = made.outputs[0]
        output.name, output.shape, output.type = name, ir.Shape(out_shape), ir.TensorType(dtype)
        self.graph.insert_before(before, made)
        return output

    def pointwise(self, before: ir.Node, x: ir.Value, weight: Float64, bias: Float64 | None) -> ir.Value:
        """A 1x1 convolution of the map x (1, C, H, W) with weight (M, C); rounded to float32 once, here."""
        channels, height, width = (shape(x) or ())[1:]
        assert channels == weight.shape[1], "callers match shapes first"
        inputs = [x, self.initializer(weight.astype(np.float32)[:, :, None, None], f"{x.name}/{self.rule}/weight")]
        if bias is not None:
            inputs.append(self.initializer(bias.astype(np.float32), f"{x.name}/{self.rule}/bias"))
        attributes = {"kernel_shape": ir.AttrInt64s("kernel_shape", [1, 1])}
        return self.node(before, "Conv", inputs, (1, weight.shape[0], height, width), attributes)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that reads `old` read `new`; a graph output keeps its name."""
        if old.is_graph_output():
            index = next(i for i, value in enumerate(self.graph.outputs) if value is old)
            old.name, new.name = f"{old.name}/{self.rule}/replaced", old.name
            self.graph.outputs[index] = new
        ir.convenience.replace_all_uses_with(old, new)

    def _free(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{name}.{number}"
        self._taken.add(candidate)
        return candidate
