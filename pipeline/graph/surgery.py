"""What the passes over a graph share: reading constants and attributes, following uses, adding and replacing nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.errors import DeployError

Float64 = NDArray[np.float64]

# The output holds all values of the first input, each once, in another order or shape: both have the same statistics.
REORDERS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
# Every output value is an input value, but an output may lack some of them, or have some several times.
MOVES = REORDERS | {"Slice", "Split", "Expand"}


@dataclass(frozen=True)
class Outcome:
    """What one rule did: the number of places, and for each place that looked right but was not, the reason."""

    applied: int
    declined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conv:
    """A Conv node with constant weights.  stored: its weight (M, C, kh, kw) as it is."""

    node: ir.Node
    stored: NDArray[np.generic]

    @property
    def weight(self) -> Float64:
        return self.stored.astype(np.float64)

    @property
    def has_bias(self) -> bool:
        return len(self.node.inputs) > 2 and self.node.inputs[2] is not None

    @property
    def bias(self) -> Float64:
        """(M,), zero where absent."""
        bias = exact(self.node.inputs[2]) if self.has_bias else None
        return np.zeros(self.stored.shape[0]) if bias is None else bias

    @property
    def is_pointwise(self) -> bool:
        """1x1, one group, no stride, no padding: each pixel's channels are mixed, and no two pixels."""
        node = self.node
        return (
            self.stored.shape[2:] == (1, 1)
            and integer(node, "group", 1) == 1
            and set(integers(node, "strides", (1, 1))) == {1}
            and not any(integers(node, "pads", (0, 0, 0, 0)))
            and text(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        )


@dataclass(frozen=True)
class Linear:
    """x W (+ b), constant.  node: the last of it.  x: (..., C).  weight: (C, D).  bias: (D,), None where absent."""

    node: ir.Node
    x: ir.Value
    weight: Float64
    bias: Float64 | None


def linear(value: ir.Value | None) -> Linear | None:
    """The Linear that makes `value`, if nobody else reads what it makes."""
    return linear_at(only_producer(value))


def linear_at(node: ir.Node | None) -> Linear | None:
    """The Linear that ends in `node`: a product, with an Add after it that alone reads it, or without."""
    last, bias = node, None
    if node is not None and node.op_type == "Add":
        sides = [(value, exact(value)) for value in node.inputs]
        bias = next((array for _, array in sides if array is not None), None)
        node = None if bias is None else only_producer(next((v for v, array in sides if array is None), None))
    if node is None or last is None or node.op_type != "MatMul" or node.domain or node.inputs[0] is None:
        return None
    weight = exact(node.inputs[1])
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[1:]):
        return None
    return Linear(last, node.inputs[0], weight, bias)


def conv(node: ir.Node | None) -> Conv | None:
    """`node` as a 2-d convolution with constant weight and bias, or None."""
    if node is None or node.op_type != "Conv" or node.domain:
        return None
    weight = unlowered(node.inputs[1])
    if weight is None or weight.ndim != 4:
        return None
    found = Conv(node, weight)
    return found if not found.has_bias or unlowered(node.inputs[2]) is not None else None


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array that an initializer holds, as it is stored; None for what is made at run time."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    array: NDArray[np.generic] = value.const_value.numpy()
    return array


def unlowered(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array that a float32 or integer initializer holds; None when it is of another type, or made at run time.

    Of another type, because a graph that is lowered already has decided where it rounds.
    """
    array = constant(value)
    return array if array is not None and array.dtype in (np.float32, np.int64, np.int32) else None


def exact(value: ir.Value | None) -> Float64 | None:
    """What `unlowered` finds, in float64, to compute with."""
    array = unlowered(value)
    return None if array is None else array.astype(np.float64)


def scalar(value: ir.Value | None) -> float | None:
    """The number that `value` holds, if it is a constant of one element."""
    array = unlowered(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape, or None where a dimension is unknown."""
    if value is None or value.shape is None or not all(isinstance(d, int) for d in value.shape):
        return None
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def is_float(value: ir.Value | None) -> bool:
    """Whether `value` is there and is float32."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def computed(node: ir.Node) -> list[ir.Value]:
    """The inputs that are there and are not constants."""
    return [value for value in node.inputs if value is not None and (value.is_graph_input() or value.producer())]


def output_name(node: ir.Node) -> str:
    """The name that plans and reports know a node by: that of its first output."""
    return str(node.outputs[0].name)


def image(model: ir.Model) -> ir.Value:
    """The one input that is fed."""
    return model.graph.inputs[0]


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


def number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def opset(model: ir.Model) -> int:
    """The version of ONNX's own operators that the graph is written in."""
    imports = model.opset_imports
    return imports[""] if "" in imports else imports["ai.onnx"]


def set_type(value: ir.Value, dtype: ir.DataType) -> None:
    value.type = ir.TensorType(dtype)  # a new one: clones of a model share the old


def refuse_control_flow(model: ir.Model) -> None:
    """Raises DeployError where a tensor has no one type and shape."""
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise DeployError(
                f"precision: got a {node.op_type} node ({node.name or output_name(node)}), expected a graph without "
                "control flow; export the model with fixed shapes"
            )


def forget_shapes(model: ir.Model) -> None:
    """Inferred shapes are those of one window; every reader infers its own, and weights have theirs."""
    inside = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    for value in (*inside, *model.graph.initializers.values()):
        value.shape = value.type = None


def drop_unread(model: ir.Model) -> None:
    """Remove the initializers that nothing reads any more."""
    initializers = model.graph.initializers
    for name in [name for name, value in initializers.items() if not value.uses() and not value.is_graph_output()]:
        del initializers[name]


def cut(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of what makes the tensors `names`, which are its outputs."""
    graph = ir.convenience.extract(model.graph, list(model.graph.inputs), names)
    return ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))


class Editor:
    """Adds nodes and initializers to one graph under names that say where they come from and are not taken."""

    def __init__(self, model: ir.Model, rule: str = "") -> None:
        self.graph = model.graph
        self.rule = rule
        self._taken = {node.name for node in model.graph} | set(model.graph.initializers)
        self._taken |= {value.name for value in model.graph.inputs}
        self._taken |= {value.name for node in model.graph for value in node.outputs}

    def initializer(self, array: NDArray[np.generic], name: str) -> ir.Value:
        value = ir.Value(name=self.free(name))
        # Not ascontiguousarray, which makes a number a vector.
        value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)
        value.shape = ir.Shape(array.shape)
        set_type(value, value.const_value.dtype)
        self.graph.register_initializer(value)
        return value

    def insert(
        self, before: ir.Node | None, op_type: str, inputs: Sequence[ir.Value | None], *, name: str,
        shape: ir.Shape | None, dtype: ir.DataType = ir.DataType.FLOAT, attributes: Iterable[ir.Attr] = (),
    ) -> ir.Value:  # fmt: skip
        """A new node in front of `before`, or at the end; returns its output.  Both are called `name`, or nearly."""
        name = self.free(name)
        made = ir.Node("", op_type, inputs, list(attributes), name=name, num_outputs=1)
        output = made.outputs[0]
        output.name, output.shape = name, None if shape is None else shape.copy()
        set_type(output, dtype)
        if before is None:
            self.graph.append(made)
        else:
            self.graph.insert_before(before, made)
        return output

    def node(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], out_shape: Sequence[int],
        attributes: Iterable[ir.Attr] = (), dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:  # fmt: skip
        """A new node in front of `before`, named after it and the rule; returns its output."""
        name = f"{before.name or before.op_type}/{self.rule}/{op_type.lower()}"
        return self.insert(
            before, op_type, inputs, name=name, shape=ir.Shape(out_shape), dtype=dtype, attributes=attributes
        )

    def pointwise(self, before: ir.Node, x: ir.Value, weight: Float64, bias: Float64 | None) -> ir.Value:
        """A 1x1 convolution of the map x (N, C, H, W) with weight (M, C); rounded to float32 once, here."""
        batch, channels, height, width = shape(x) or ()
        assert channels == weight.shape[1], "callers match shapes first"
        inputs = [x, self.initializer(weight.astype(np.float32)[:, :, None, None], f"{x.name}/{self.rule}/weight")]
        if bias is not None:
            inputs.append(self.initializer(bias.astype(np.float32), f"{x.name}/{self.rule}/bias"))
        kernel = ir.AttrInt64s("kernel_shape", [1, 1])
        return self.node(before, "Conv", inputs, (batch, weight.shape[0], height, width), [kernel])

    def reshape(self, before: ir.Node, value: ir.Value | None, size: Sequence[int]) -> ir.Value:
        wanted = self.initializer(np.array(size, np.int64), f"{before.name}/{self.rule}/size")
        return self.node(before, "Reshape", [value, wanted], size)

    def to_map(self, before: ir.Node, tokens: ir.Value, size: Sequence[int]) -> ir.Value:
        """tokens (1, L, C) as a map of `size` (1, C, H, W)."""
        batch, count, channels = shape(tokens) or ()
        turned = self.node(
            before, "Transpose", [tokens], (batch, channels, count), [ir.AttrInt64s("perm", [0, 2, 1])]
        )  # fmt: skip
        return self.reshape(before, turned, size)

    def to_tokens(self, before: ir.Node, value: ir.Value) -> ir.Value:
        """A map (1, C, H, W) as tokens (1, HW, C)."""
        batch, channels, height, width = shape(value) or ()
        flat = self.reshape(before, value, (batch, channels, height * width))
        return self.node(
            before, "Transpose", [flat], (batch, height * width, channels), [ir.AttrInt64s("perm", [0, 2, 1])]
        )  # fmt: skip

    def stand_in(self, old: ir.Value, new: ir.Value) -> None:
        """As `replace`; `new` holds the same values and takes over the name, by which measured ranges know them."""
        if not old.is_graph_output():
            old.name, new.name = f"{old.name}/{self.rule}/replaced", old.name
        self.replace(old, new)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that reads `old` read `new`; a graph output keeps its name."""
        if old.is_graph_output():
            index = next(i for i, value in enumerate(self.graph.outputs) if value is old)
            old.name, new.name = f"{old.name}/{self.rule}/replaced", old.name
            self.graph.outputs[index] = new
        ir.convenience.replace_all_uses_with(old, new)

    def free(self, name: str) -> str:
        """`name`, or `name` with a number, whichever is not taken; it is taken then."""
        candidate, number = name, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{name}.{number}"
        self._taken.add(candidate)
        return candidate
