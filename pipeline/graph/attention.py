"""The Linears around an attention, and the moves between: what its rewrites read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Float64, Linear, exact, integers, linear, linear_at, only_producer, only_use, shape

Move = Callable[[Float64], Float64]
_MOVES = ("Reshape", "Transpose")


def moved_linear(value: ir.Value | None) -> tuple[Linear, list[Move]] | None:
    """The Linear from which `value` came unchanged, and the moves on the way; nobody else reads what lies between."""
    moves: list[Move] = []
    while (node := only_producer(value)) is not None and node.op_type in _MOVES:
        moves.insert(0, _move(node))
        value = node.inputs[0]
    found = linear(value)
    return None if found is None or shape(value) is None else (found, moves)


def projection(product: ir.Node) -> tuple[Linear | None, list[Move]]:
    """The Linear that alone reads what `product`, an attention's second, makes; and the moves on the way."""
    moves: list[Move] = []
    node = only_use(product.outputs[0])
    while node is not None and node.op_type in _MOVES:
        moves.append(_move(node))
        node = only_use(node.outputs[0])
    added = None if node is None else only_use(node.outputs[0])
    return None if added is None else linear_at(added), moves


def moved(array: Float64, size: Sequence[int] | None, moves: Sequence[Move]) -> Float64:
    """`array`, repeated to `size`, as it lies after `moves`."""
    result: Float64 = np.broadcast_to(array, size or ())
    for move in moves:
        result = move(result)
    return result


def without_bias(linear: Linear) -> ir.Value:
    """The product inside a Linear with a bias."""
    return next(value for value in linear.node.inputs if value is not None and exact(value) is None)


def _move(node: ir.Node) -> Move:
    if node.op_type == "Transpose":
        order = integers(node, "perm", tuple(reversed(range(len(shape(node.outputs[0]) or ())))))
        return lambda array: array.transpose(order)
    size = shape(node.outputs[0]) or ()
    return lambda array: array.reshape(size)
