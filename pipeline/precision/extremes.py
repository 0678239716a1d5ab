"""The smallest and largest value of every float tensor of a graph on given windows, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from engines.contract import BuildConfig, Float32
from engines.proof.stress import grid
from pipeline.graph.onnx_graph import OnnxGraph, open_onnx
from pipeline.graph.surgery import Editor, cut, image, is_float, shape
from pipeline.precision.observe import moved_tensors, quantizable_tensors, watching

BUDGET = 512 << 20  # bytes of activations held at once

Bounds = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Seen:
    """What an FP32 graph made of some windows.

    bounds: (low, high) of the input and of every float tensor, over all windows.  logits: (M, K, gh, gw) float32, a
    grid of each window's (see `engines.proof.stress.grid`).
    """

    bounds: Bounds
    logits: Float32


def extremes(graph: OnnxGraph, windows: Sequence[Float32]) -> dict[str, tuple[float, float]]:
    """(low, high) of the input and of every float tensor of an FP32 graph, over all windows; computed by OpenVINO."""
    return dict(see(graph, windows).bounds)


def see(graph: OnnxGraph, windows: Sequence[Float32]) -> Seen:
    """As `extremes`, with the logits of the same runs.

    The graph itself reduces every tensor to its bounds, so that none has to be handed out: measured on SegFormer-B0 at
    1024x1024, 2.4 instead of 9 seconds of CPU a window.
    """
    source, logits = str(image(graph.model).name), str(graph.model.graph.outputs[0].name)
    result = {source: (min(float(w.min()) for w in windows), max(float(w.max()) for w in windows))}
    observed = [item.name for item in quantizable_tensors(graph, every=True) if item.name != source]
    bounded, names = _bounded(graph, observed)
    grids = []
    with watching(bounded, [*names, logits], BuildConfig()) as run:
        for window in windows:
            *bounds, output = run(window)
            grids.append(grid(output).copy())
            for index, name in enumerate(observed):
                low, high = result.get(name, (np.inf, -np.inf))
                result[name] = (
                    float(np.minimum(low, bounds[2 * index])),  # a NaN stays one
                    float(np.maximum(high, bounds[2 * index + 1])),
                )
    for name, origin in moved_tensors(graph).items():
        if origin in result:
            result.setdefault(name, result[origin])
    rest = set(float_names(graph)) - set(result)
    for name, value in tensors(graph, windows[0], rest) if rest else ():  # made from constants alone
        result[name] = (float(value.min()), float(value.max()))
    return Seen(result, np.concatenate(grids))


def answers(graph: OnnxGraph, windows: Sequence[Float32]) -> Float32:
    """A grid of each window's logits alone, (M, K, gh, gw), as `see` gives them."""
    with watching(graph, [str(graph.model.graph.outputs[0].name)], BuildConfig()) as run:
        return np.concatenate([grid(run(window)[0]).copy() for window in windows])


def float_names(graph: OnnxGraph) -> list[str]:
    """Every float32 tensor that a node makes."""
    return [str(value.name) for node in graph.model.graph for value in node.outputs if value.name and is_float(value)]


def _bounded(graph: OnnxGraph, observed: Sequence[str]) -> tuple[OnnxGraph, list[str]]:
    """The graph with two more outputs, the least and the largest value, for each of the tensors `observed`."""
    model = graph.model.clone()
    editor = Editor(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    whole = [ir.AttrInt64("keepdims", 0)]
    added = [
        editor.insert(None, kind, [values[name]], name=f"{name}__{kind}", shape=ir.Shape([]), attributes=whole)
        for name in observed
        for kind in ("ReduceMin", "ReduceMax")
    ]
    return OnnxGraph(model, graph.input_shape, graph.output_shape), [str(value.name) for value in added]


def widened(first: Bounds, second: Bounds) -> dict[str, tuple[float, float]]:
    """The bounds of `first`, each at least as wide as in `second` where that knows the tensor."""
    return {
        name: (min(low, second[name][0]), max(high, second[name][1])) if name in second else (low, high)
        for name, (low, high) in first.items()
    }


def carried_over(graph: OnnxGraph, measured: Bounds) -> dict[str, tuple[float, float]]:
    """`measured` for a graph with Q/DQ nodes: what quantisation added has the range of the tensor it stands for."""
    values = (*graph.model.graph.inputs, *(value for node in graph.model.graph for value in node.outputs))
    return {str(value.name): _origin(value, measured) for value in values}


def _origin(value: ir.Value | None, measured: Bounds) -> tuple[float, float]:
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
