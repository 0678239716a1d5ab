"""SmoothQuant: move the outliers of LayerNorm outputs into the weights that read them, before quantisation.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023,
arXiv 2211.10438, eq. 3-4: X W = (X / s)(s W) with s_j = max|X_j|^a / max|W_j|^(1-a).  Exact in real arithmetic: 1/s is
folded into LayerNorm's scale and bias, s into the input channels of *every* layer that reads the output, also through
Transpose and Reshape.  Declined where anything else reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calib.ranges.ranges import Ranges, TensorRange
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.view import GraphView, attribute, fresh, names_of, view
from pipeline.precision.plan import PrecisionPlan

F64 = NDArray[np.float64]
ALPHA = 0.5


@dataclass(frozen=True)
class Smoothing:
    """One LayerNorm, named by its output.  declined: why nothing was done, or ``""``.

    before, after: the largest channel of the output over the median channel; 1 would be perfectly even.
    """

    output: str
    declined: str = ""
    before: float = 0.0
    after: float = 0.0


@dataclass(frozen=True)
class _Reader:
    """A layer that reads the channels: `axis` is their axis in its constant."""

    node: onnx.NodeProto
    axis: int


def smooth(
    graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, alpha: float = ALPHA
) -> tuple[OnnxGraph, Ranges, tuple[Smoothing, ...]]:
    """The rescaled graph, the ranges that its tensors now have, and what was done to each LayerNorm."""
    shown = view(graph.model)
    taken = names_of(graph.model)
    edits: dict[str, onnx.NodeProto] = {}
    constants: list[onnx.TensorProto] = []
    moved: dict[str, TensorRange] = {}
    report = []
    for node in shown.nodes:
        if node.op_type != "LayerNormalization":
            continue
        readers, tensors, declined = _readers(shown, node)
        measured = next((ranges.tensors[t] for t in tensors if t in ranges.tensors), None)
        declined = declined or _unsuitable(shown, node, plan, readers, measured)
        if declined or measured is None or measured.channel_amax is None:
            report.append(Smoothing(node.output[0], declined))
            continue
        peaks = np.asarray(measured.channel_amax, np.float64)
        s = _factors(shown, readers, peaks, alpha)
        before, after = _unevenness(peaks), _unevenness(peaks / s)
        if after >= before:
            report.append(Smoothing(node.output[0], "its channels are as even as they get", before, after))
            continue
        _fold(shown, node, readers, s, taken, edits, constants)
        moved.update({name: _rescaled(ranges.tensors[name], s) for name in tensors if name in ranges.tensors})
        report.append(Smoothing(node.output[0], "", before, after))
    done = sum(not item.declined for item in report)
    if not done:
        return graph.declined("SmoothQuant", "no LayerNorm qualifies"), ranges, tuple(report)
    smoothed = graph.then(_rebuilt(graph.model, edits, constants), f"SmoothQuant: {done} of {len(report)} LayerNorms")
    return smoothed, replace(ranges, tensors={**ranges.tensors, **moved}), tuple(report)


def _readers(shown: GraphView, norm: onnx.NodeProto) -> tuple[list[_Reader], list[str], str]:
    """All layers that read the output's channels, all tensors that carry them, and why that cannot be used."""
    rank = len(shown.shapes[norm.input[0]])
    axis = int(str(attribute(norm, "axis", -1))) % rank
    if axis != rank - 1:
        return [], [], f"normalises {rank - axis} axes"
    if any(name not in shown.constants for name in norm.input[1:]):
        return [], [], "its scale or bias is computed"
    readers: list[_Reader] = []
    tensors: list[str] = []
    pending = [(norm.output[0], axis)]
    while pending:
        name, channel = pending.pop()
        tensors.append(name)
        if name == shown.output:
            return [], [], "its output is the model's output"
        for node in shown.consumers.get(name, []):
            weight_axis = _weight_axis(shown, node, name, channel)
            moved = _moved_axis(shown, node, channel)
            if weight_axis is not None:
                readers.append(_Reader(node, weight_axis))
            elif moved is not None:
                pending.append((node.output[0], moved))
            else:
                return [], [], f"its output is also read by {node.op_type} {node.output[0]}"
    return readers, tensors, ""


def _weight_axis(shown: GraphView, node: onnx.NodeProto, name: str, channel: int) -> int | None:
    """Axis of the weight that meets the channels, or None when this is not a layer that can take the factor."""
    if node.op_type not in ("MatMul", "Gemm", "Conv") or list(node.input).count(name) != 1 or node.input[0] != name:
        return None
    weight = shown.constants.get(node.input[1])
    if weight is None:
        return None
    if node.op_type == "Conv":
        if channel != 1:
            return None
        group = int(str(attribute(node, "group", 1)))
        return 1 if group == 1 else 0 if group == weight.shape[0] == shown.shapes[name][1] else None
    if weight.ndim != 2 or channel != len(shown.shapes[name]) - 1 or attribute(node, "transA", 0):
        return None
    return 1 if attribute(node, "transB", 0) else 0


def _moved_axis(shown: GraphView, node: onnx.NodeProto, channel: int) -> int | None:
    """Where the channel axis is after a Transpose or a Reshape that keeps it whole."""
    if node.op_type == "Transpose":
        order = attribute(node, "perm")
        return list(order).index(channel) if isinstance(order, list) else None
    if node.op_type not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return None
    before, after = shown.shapes[node.input[0]], shown.shapes[node.output[0]]
    outer = int(np.prod(before[:channel], dtype=np.int64))
    for axis, size in enumerate(after):
        if size == before[channel] and int(np.prod(after[:axis], dtype=np.int64)) == outer:
            return axis
    return None


def _unsuitable(
    shown: GraphView, norm: onnx.NodeProto, plan: PrecisionPlan, readers: list[_Reader], measured: TensorRange | None
) -> str:
    if not any(plan.precision(reader.node.output[0]) == "int8" for reader in readers):
        return "nothing that reads it is quantised"
    if measured is None or measured.channel_amax is None:
        return "no range per channel was measured"
    channels = shown.shapes[norm.output[0]][-1]
    if len(measured.channel_amax) != channels:
        return f"{len(measured.channel_amax)} channel ranges for {channels} channels"
    return ""


def _factors(shown: GraphView, readers: list[_Reader], peaks: F64, alpha: float) -> F64:
    weights = np.zeros_like(peaks)
    for reader in readers:
        weight = np.abs(shown.constants[reader.node.input[1]].astype(np.float64))
        others = tuple(i for i in range(weight.ndim) if i != reader.axis)
        weights = np.maximum(weights, weight.max(axis=others))
    s = np.ones_like(peaks)
    usable = (peaks > 0) & (weights > 0)
    s[usable] = peaks[usable] ** alpha / weights[usable] ** (1 - alpha)
    # A common factor changes no quantisation; a mean of one keeps the tensors where they were in FP16's range.
    s[usable] /= np.exp(np.log(s[usable]).mean()) if usable.any() else 1.0
    return s


def _fold(
    shown: GraphView, norm: onnx.NodeProto, readers: list[_Reader], s: F64, taken: set[str],
    edits: dict[str, onnx.NodeProto], constants: list[onnx.TensorProto],
) -> None:  # fmt: skip
    def replaced(node: onnx.NodeProto, index: int, factor: F64) -> None:
        copy = edits.setdefault(node.output[0], _copy(node))
        old = shown.constants[node.input[index]]
        name = fresh(taken, f"{node.input[index]}__smooth")
        constants.append(numpy_helper.from_array((old.astype(np.float64) * factor).astype(old.dtype), name))
        copy.input[index] = name

    for index in range(1, len(norm.input)):
        replaced(norm, index, 1 / s)
    for reader in readers:
        shape = [1] * shown.constants[reader.node.input[1]].ndim
        shape[reader.axis] = -1
        replaced(reader.node, 1, s.reshape(shape))


def _rescaled(old: TensorRange, s: F64) -> TensorRange:
    if old.channel_amax is None:
        return old
    peaks = np.asarray(old.channel_amax, np.float64)
    new = peaks / s
    ratio = float(new.max() / peaks.max()) if peaks.max() > 0 else 1.0
    mean = None if old.channel_mean is None else tuple((np.asarray(old.channel_mean) / s).tolist())
    return TensorRange(
        old.amax * ratio, old.low * ratio, old.high * ratio, old.rms * ratio, tuple(new.tolist()), mean
    )  # a clipping method keeps the share of the largest channel that it clipped


def _unevenness(peaks: F64) -> float:
    return float(peaks.max() / max(float(np.median(peaks)), 1e-30))


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _rebuilt(
    model: onnx.ModelProto, edits: Mapping[str, onnx.NodeProto], constants: list[onnx.TensorProto]
) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = [edits.get(node.output[0], node) for node in model.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [i for i in (*model.graph.initializer, *constants) if i.name in read]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result
