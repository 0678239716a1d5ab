"""The smallest and largest value of every float tensor of a graph on given windows, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import onnx

from engines.base import Float32
from pipeline.graph import OnnxGraph, open_onnx
from pipeline.precision.view import GraphView, view

BUDGET = 512 << 20  # bytes of activations held at once


def extremes(graph: OnnxGraph, windows: Sequence[Float32]) -> Mapping[str, tuple[float, float]]:
    """(low, high) of the input and of every float output of a node, over all windows."""
    source = view(graph.model).inputs[0]
    result: dict[str, tuple[float, float]] = {}
    for window in windows:
        for name, value in chain([(source, window)], tensors(graph, window)):
            low, high = result.get(name, (np.inf, -np.inf))
            result[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return result


def tensors(graph: OnnxGraph, window: Float32, only: set[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(name, array) of every float tensor that a node makes, in graph order; at most BUDGET bytes are held."""
    shown = view(graph.model)
    names = [n for node in shown.nodes for n in node.output if n and shown.is_float(n) and (only is None or n in only)]
    for chunk in _chunks(names, shown):
        session = open_onnx(_with_outputs(graph.model, chunk))
        yield from zip(chunk, session.run(list(chunk), {session.get_inputs()[0].name: window}), strict=True)


def _chunks(names: list[str], shown: GraphView) -> Iterator[list[str]]:
    chunk: list[str] = []
    held = 0
    for name in names:
        size = 4 * int(np.prod(shown.shapes[name], dtype=np.int64))
        if chunk and held + size > BUDGET:
            yield chunk
            chunk, held = [], 0
        chunk.append(name)
        held += size
    if chunk:
        yield chunk


def _with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The part of the graph that is needed for the tensors `names`, which become its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    needed, kept = set(names), []
    for node in reversed(copy.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del copy.graph.node[:]
    copy.graph.node.extend(reversed(kept))
    return copy
