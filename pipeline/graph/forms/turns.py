"""Tokens (1, L, C) and the map (1, C, H, W) that holds the same values: which became which, in either spelling.

Turned and then cut into rows, ``Reshape(Transpose(tokens, 0 2 1))``, or cut first,
``Transpose(Reshape(tokens), 0 3 1 2)``; and both ways back.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from pipeline.graph.surgery import integers, only_producer, shape

_TO_MAP = {("Transpose", "Reshape"): (0, 2, 1), ("Reshape", "Transpose"): (0, 3, 1, 2)}
_TO_TOKENS = {("Reshape", "Transpose"): (0, 2, 1), ("Transpose", "Reshape"): (0, 2, 3, 1)}


def map_of(tokens: ir.Value | None) -> ir.Value | None:
    """The map that `tokens` were made of."""
    last = None if tokens is None else tokens.producer()
    first = None if last is None or last.inputs[0] is None else last.inputs[0].producer()
    if first is None or last is None or not _turns(first, last, _TO_TOKENS):
        return None
    x = first.inputs[0]
    return x if x is not None and _same(shape(tokens), shape(x)) else None


def tokens_of(made: ir.Value) -> ir.Value | None:
    """The tokens that the map `made` was made of, where nobody else reads what lies between."""
    last = made.producer()
    first = None if last is None else only_producer(last.inputs[0])
    if first is None or last is None or not _turns(first, last, _TO_MAP) or only_producer(first.inputs[0]) is None:
        return None
    tokens = first.inputs[0]
    return tokens if tokens is not None and _same(shape(tokens), shape(made)) else None


def maps_of(tokens: ir.Value) -> list[ir.Value]:
    """The maps that are made of `tokens`; none where somebody reads them otherwise, or what lies between."""
    if tokens.is_graph_output():
        return []
    found = []
    for first in tokens.consumers():
        between = first.outputs[0]
        if between.is_graph_output():
            return []
        for last in between.consumers():
            if not _turns(first, last, _TO_MAP) or not _same(shape(tokens), shape(last.outputs[0])):
                return []
            found.append(last.outputs[0])
    return found


def _turns(first: ir.Node, last: ir.Node, spellings: dict[tuple[str, str], tuple[int, ...]]) -> bool:
    order = spellings.get((first.op_type, last.op_type))
    turn = first if first.op_type == "Transpose" else last
    return order is not None and integers(turn, "perm", ()) == order and last.inputs[0] is first.outputs[0]


def _same(tokens: tuple[int, ...] | None, made: tuple[int, ...] | None) -> bool:
    """Whether each pixel's channels are one token."""
    if tokens is None or made is None or len(tokens) != 3 or len(made) != 4:
        return False
    return tokens[0] == made[0] == 1 and tokens[1] == math.prod(made[2:]) and tokens[2] == made[1]
