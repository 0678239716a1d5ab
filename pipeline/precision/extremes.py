"""The smallest and largest value of every float tensor of a graph on given windows, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from engines.backends.openvino import observing
from engines.contract import BuildConfig, Float32
from pipeline.graph.onnx_graph import OnnxGraph, open_onnx
from pipeline.graph.view import GraphView, view
from pipeline.precision.observe import (
    float_shapes,
    image_input,
    moved_tensors,
    quantizable_tensors,
    split,
    with_outputs,
)

BUDGET = 512 << 20  # bytes of activations held at once


def extremes(graph: OnnxGraph, windows: Sequence[Float32]) -> dict[str, tuple[float, float]]:
    """(low, high) of the input and of every float tensor of an FP32 graph, over all windows; computed by OpenVINO."""
    source = image_input(graph.model)
    shapes = float_shapes(graph.model)
    result = {source: (min(float(w.min()) for w in windows), max(float(w.max()) for w in windows))}
    observed = [item for item in quantizable_tensors(graph, every=True) if item.name != source]
    for group in split(observed, shapes, BUDGET):
        names = [item.name for item in group]
        with observing(with_outputs(graph.model, names, shapes), names, BuildConfig()) as run:
            for window in windows:
                for name, value in zip(names, run(window), strict=True):
                    low, high = result.get(name, (np.inf, -np.inf))
                    result[name] = (min(low, float(value.min())), max(high, float(value.max())))
    for name, origin in moved_tensors(graph.model).items():
        if origin in result:
            result.setdefault(name, result[origin])
    shown = view(graph.model)
    rest = {name for node in shown.nodes for name in node.output if shown.is_float(name)} - set(result)
    for name, value in tensors(graph, windows[0], rest) if rest else ():  # made from constants alone
        result[name] = (float(value.min()), float(value.max()))
    return result


def carried_over(shown: GraphView, measured: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """`measured` for a graph with Q/DQ nodes: what quantisation added has the range of the tensor it stands for."""
    names = (*shown.inputs, *(name for node in shown.nodes for name in node.output))
    return {name: _origin(shown, name, measured) for name in names}


def _origin(shown: GraphView, name: str, measured: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    while name not in measured:
        node = shown.producer.get(name)
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity"):
            return -1.0, 1.0  # made from weights: they are checked for themselves
        name = node.input[0]
    return measured[name]


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
