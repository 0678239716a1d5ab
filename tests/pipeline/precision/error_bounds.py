"""What a lowered graph may be off by, from the types alone: a running error analysis in float64.

Every tensor is followed with its value and a bound of its absolute error (Higham, "Accuracy and Stability of Numerical
Algorithms", 3.3 and 3.5): rounding to a type adds u |x| + t, with u half of its spacing at 1 and t half of its smallest
number; quantising adds half a step; an operator passes errors on as its derivative allows; sums of n products in
float32 add n 2^-24 of the sum of their magnitudes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph

F64 = NDArray[np.float64]
Arrays = Sequence[F64 | None]
Names = Sequence[str | None]
UNITS = {"fp16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-134), "fp32": (2.0**-24, 2.0**-150)}
FLOAT32 = 2.0**-24
MOVES = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Expand",
    "Concat", "Gather",
}  # fmt: skip
AVERAGES = {"Resize", "GlobalAveragePool", "AveragePool", "ReduceMean", "MaxPool"}  # weights not negative, their sum 1
STEADY = {"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip"}  # derivative at most 1
PRODUCTS = {"Conv", "MatMul", "Gemm", "Mul"}


class Unbounded(Exception):
    """An error that can grow without limit, or a value that the type does not hold."""


@dataclass
class Analysis:
    """kind: the type that every float tensor may be rounded to.  layers: outputs of the nodes that are quantised."""

    graph: OnnxGraph
    kind: str
    ranges: Ranges | None = None
    layers: frozenset[str] = frozenset()
    largest: float = np.inf
    values: dict[str, F64] = field(default_factory=dict)
    errors: dict[str, F64] = field(default_factory=dict)

    def run(self, x: F64) -> tuple[F64, F64]:
        """The output and the bound of its error.  Raises Unbounded."""
        model = self.graph.model
        self.values[str(model.graph.inputs[0].name)] = x
        self.errors[str(model.graph.inputs[0].name)] = self._rounded(x, np.zeros_like(x))
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            array = value.const_value.numpy()
            self.values[name] = array.astype(np.float64) if array.dtype == np.float32 else array
            if array.dtype == np.float32:
                self.errors[name] = self._rounded(self.values[name], np.zeros(array.shape))
        for node in model.graph:
            self._visit(node)
        output = str(model.graph.outputs[0].name)
        return self.values[output], self.errors[output]

    def _rounded(self, value: F64, error: F64) -> F64:
        unit, tiny = UNITS[self.kind]
        if not np.all(np.abs(value) + error <= self.largest):
            raise Unbounded
        return np.asarray(error + unit * (np.abs(value) + error) + tiny)

    def _visit(self, node: ir.Node) -> None:
        inputs = [None if value is None else str(value.name) for value in node.inputs]
        made = _apply(node, [None if name is None else self.values[name] for name in inputs])
        outputs = [str(value.name) for value in node.outputs]
        self.values |= dict(zip(outputs, made, strict=True))
        if made[0].dtype != np.float64:
            return
        for name, value, error in zip(outputs, made, self._error(node, inputs, made), strict=True):
            self.errors[name] = self._rounded(value, np.broadcast_to(error, value.shape))

    def _error(self, node: ir.Node, inputs: Names, made: list[F64]) -> list[F64]:
        values = [None if name is None else self.values[name] for name in inputs]
        errors = [self.errors.get(name, None) if name is not None else None for name in inputs]
        op, rounding = node.op_type, 4 * FLOAT32 * np.abs(made[0])
        if op in PRODUCTS:
            return [self._product(node, inputs, values, errors)]
        if op in MOVES | AVERAGES:
            passed = _apply(node, [v if e is None else e for v, e in zip(values, errors, strict=True)])
            length = 1 if op in MOVES else 64
            noises = [length * FLOAT32 * np.abs(value).max(initial=0) for value in made]
            return [error + noise for error, noise in zip(passed, noises, strict=True)]
        if op in ("Add", "Sub"):
            return [sum((e for e in errors if e is not None), start=np.zeros(())) + rounding]
        first = errors[0]
        assert first is not None
        if op in STEADY:
            return [first + rounding]
        axis = int(node.attributes["axis"].as_int()) if "axis" in node.attributes else -1
        if op == "Softmax":
            return [made[0] * np.expm1(2 * first.max(axis=axis, keepdims=True)) + 64 * FLOAT32]
        assert op == "LayerNormalization", op
        return [self._normalised(node, values, errors)]

    def _product(self, node: ir.Node, inputs: Names, values: Arrays, errors: Arrays) -> F64:
        """f is linear in each input with coefficients of one sign once its inputs are: its growth bounds the error."""
        sizes = [None if v is None else np.abs(v) for v in values]
        if str(node.outputs[0].name) in self.layers:
            assert errors[0] is not None
            step = _weight_step(node, values[1], UNITS[self.kind][0])
            # Twice: what lies beyond the range is clipped to it.
            errors = [2 * errors[0] + self._step(inputs[0]), step, *errors[2:]]
        grown = [None if s is None else s + (0 if e is None else e) for s, e in zip(sizes, errors, strict=True)]
        most = _apply(node, grown, positive=True)[0]
        length = max((0 if v is None else v.size for v in values[1:2]), default=1)
        return np.asarray(most - _apply(node, sizes, positive=True)[0] + (length + 8) * FLOAT32 * most)

    def _step(self, name: str | None) -> float:
        assert self.ranges is not None
        return max(self.ranges.tensors[str(name)].amax / 127, 2.0**-24) / 2 * (1 + 4 * UNITS[self.kind][0])

    def _normalised(self, node: ir.Node, values: Arrays, errors: Arrays) -> F64:
        x, error, gain = values[0], errors[0], values[1]
        assert x is not None
        assert error is not None
        assert gain is not None
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + node.attributes["epsilon"].as_float())
        shift, wobble = error + error.mean(-1, keepdims=True), 2 * np.sqrt(np.square(error).mean(-1, keepdims=True))
        if not np.all(wobble < spread / 2):
            raise Unbounded
        off = shift / (spread - wobble) + np.abs(centred) * wobble / (spread * (spread - wobble)) + 64 * FLOAT32
        normal = np.abs(centred) / spread + off
        result = off * np.abs(gain) + normal * (errors[1] if errors[1] is not None else 0)
        return np.asarray(result + (errors[2] if len(errors) > 2 and errors[2] is not None else 0))


def _weight_step(node: ir.Node, weight: F64 | None, unit: float) -> F64:
    """Half a step of each output channel, whose largest weight is 127 steps."""
    assert weight is not None
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
    axis = 0 if node.op_type == "Conv" or transposed else weight.ndim - 1
    others = tuple(i for i in range(weight.ndim) if i != axis)
    step = np.maximum(np.abs(weight).max(axis=others, keepdims=True) / 127, 2.0**-24) / 2 * (1 + 4 * unit)
    return np.broadcast_to(step, weight.shape)


def _apply(node: ir.Node, inputs: Arrays, positive: bool = False) -> list[F64]:
    """The node's outputs by onnx's reference implementation.  positive: with factors as their magnitudes."""
    proto: onnx.NodeProto = ir.to_proto(node)
    if positive:
        for attribute in proto.attribute:
            if attribute.name in ("alpha", "beta"):
                attribute.f = abs(attribute.f)
    feeds = {name: value for name, value in zip(proto.input, inputs, strict=True) if value is not None}
    with np.errstate(over="ignore", invalid="ignore"):  # its Sigmoid takes both branches
        return [np.asarray(value) for value in ReferenceEvaluator(proto).run(None, feeds)]


def exceeds(got: NDArray[np.floating[Any]], value: F64, bound: F64) -> str:
    """By how much the worst element lies beyond its bound, or ``""``."""
    excess = np.abs(got.astype(np.float64) - value) / bound
    worst = np.unravel_index(int(np.argmax(excess)), value.shape)
    return "" if np.all(excess <= 1) else f"{excess[worst]:.3g} times the bound {bound[worst]:.3g} at {worst}"
