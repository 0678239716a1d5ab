"""The smallest and largest value of every float tensor of a graph on given windows, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from engines.contract import BuildConfig, Float32
from pipeline.graph.onnx_graph import OnnxGraph, open_onnx
from pipeline.graph.surgery import cut, image, is_float, shape
from pipeline.precision.observe import float_shapes, moved_tensors, quantizable_tensors, split, watching

BUDGET = 512 << 20  # bytes of activations held at once


def extremes(graph: OnnxGraph, windows: Sequence[Float32]) -> dict[str, tuple[float, float]]:
    """(low, high) of the input and of every float tensor of an FP32 graph, over all windows; computed by OpenVINO."""
    source, shapes = str(image(graph.model).name), float_shapes(graph)
    result = {source: (min(float(w.min()) for w in windows), max(float(w.max()) for w in windows))}
    observed = [item for item in quantizable_tensors(graph, every=True) if item.name != source]
    for group in split(observed, shapes, BUDGET):
        names = [item.name for item in group]
        with watching(graph, names, BuildConfig()) as run:
            for window in windows:
                for name, value in zip(names, run(window), strict=True):
                    low, high = result.get(name, (np.inf, -np.inf))
                    result[name] = (min(low, float(value.min())), max(high, float(value.max())))
    for name, origin in moved_tensors(graph).items():
        if origin in result:
            result.setdefault(name, result[origin])
    rest = set(shapes) - set(result)
    for name, value in tensors(graph, windows[0], rest) if rest else ():  # made from constants alone
        result[name] = (float(value.min()), float(value.max()))
    return result


def carried_over(graph: OnnxGraph, measured: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """`measured` for a graph with Q/DQ nodes: what quantisation added has the range of the tensor it stands for."""
    values = (*graph.model.graph.inputs, *(value for node in graph.model.graph for value in node.outputs))
    return {str(value.name): _origin(value, measured) for value in values}


def _origin(value: ir.Value | None, measured: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    while value is not None and value.name not in measured:
        node = value.producer()
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity"):
            return -1.0, 1.0  # made from weights: they are checked for themselves
        value = node.inputs[0]
    assert value is not None
    return measured[str(value.name)]


def tensors(graph: OnnxGraph, window: Float32, only: Collection[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(name, array) of every float tensor that a node makes, in graph order; at most BUDGET bytes are held."""
    made = (value for node in graph.model.graph for value in node.outputs if value.name and is_float(value))
    for chunk in _chunks(value for value in made if only is None or value.name in only):
        session = open_onnx(cut(graph.model, chunk))
        yield from zip(chunk, session.run(chunk, {session.get_inputs()[0].name: window}), strict=True)


def _chunks(values: Iterator[ir.Value]) -> Iterator[list[str]]:
    chunk: list[str] = []
    held = 0
    for value in values:
        size = 4 * math.prod(shape(value) or ())
        if chunk and held + size > BUDGET:
            yield chunk
            chunk, held = [], 0
        chunk.append(str(value.name))
        held += size
    if chunk:
        yield chunk
