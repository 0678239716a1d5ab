"""SmoothQuant: move the outliers of LayerNorm outputs into the weights that read them, before quantisation.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023,
arXiv 2211.10438, eq. 3-4: X W = (X / s)(s W) with s_j = max|X_j|^a / max|W_j|^(1-a).  Exact in real arithmetic: 1/s is
folded into LayerNorm's scale and bias, s into the input channels of *every* layer that reads the output, also through
Transpose and Reshape.  Declined where anything else reads it and, where there is evidence, unless it lowers the sum of
the relative errors of the INT8 layers that read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.ranges.ranges import Ranges, TensorRange
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Editor, constant, drop_unread, integer, integers, output_name, shape
from pipeline.precision.evidence import Evidence
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import scale_axis
from pipeline.precision.quantise import dequantise, quantise, weight_scales

F64 = NDArray[np.float64]
ALPHA = 0.5


@dataclass(frozen=True)
class Smoothing:
    """One LayerNorm, named by its output.  declined: why nothing was done, or ``""``.

    before, after: the largest channel of the output over the median channel; 1 would be perfectly even.
    error_before, error_after: sum of the relative squared errors of the INT8 layers that read it; None where it was not
    measured (see `evidence`).
    """

    output: str
    declined: str = ""
    before: float = 0.0
    after: float = 0.0
    error_before: float | None = None
    error_after: float | None = None


@dataclass(frozen=True)
class _Reader:
    """A layer that reads the channels: `axis` is their axis in its `weight`."""

    node: ir.Node
    axis: int
    weight: NDArray[np.generic]


def smooth(
    graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, alpha: float = ALPHA, stored: str = "fp32",
    evidence: Evidence | None = None,
) -> tuple[OnnxGraph, Ranges, tuple[Smoothing, ...]]:  # fmt: skip
    """The rescaled graph, the ranges that its tensors now have, and what was done to each LayerNorm.

    evidence: of `graph`, to judge each by, with scales of the type `stored`.
    """
    model = graph.model.clone()
    editor, report = Editor(model), []
    moved: dict[str, TensorRange] = {}
    for node in list(model.graph):
        if node.op_type != "LayerNormalization":
            continue
        name = output_name(node)
        readers, tensors, declined = _readers(node)
        measured = next((ranges.tensors[t] for t in tensors if t in ranges.tensors), None)
        declined = declined or _unsuitable(node, plan, readers, measured)
        if declined or measured is None or measured.channel_amax is None:
            report.append(Smoothing(name, declined))
            continue
        peaks = np.asarray(measured.channel_amax, np.float64)
        s = _factors(readers, peaks, alpha)
        before, after = _unevenness(peaks), _unevenness(peaks / s)
        if after >= before:
            report.append(Smoothing(name, "its channels are as even as they get", before, after))
            continue
        rescaled = {name: _rescaled(ranges.tensors[name], s) for name in tensors if name in ranges.tensors}
        errors = (None, None) if evidence is None else _errors(readers, plan, ranges, rescaled, s, stored, evidence)
        item = Smoothing(name, "", before, after=after, error_before=errors[0], error_after=errors[1])
        if errors[0] is not None and errors[1] is not None and errors[1] >= errors[0]:
            report.append(replace(item, declined="it lowers no error"))
            continue
        _fold(editor, node, readers, s)
        moved.update(rescaled)
        report.append(item)
    drop_unread(model)
    done = sum(not item.declined for item in report)
    if not done:
        return graph.declined("SmoothQuant", "no LayerNorm qualifies"), ranges, tuple(report)
    smoothed = graph.then(model, f"SmoothQuant: {done} of {len(report)} LayerNorms")
    return smoothed, replace(ranges, tensors={**ranges.tensors, **moved}), tuple(report)


def _readers(norm: ir.Node) -> tuple[list[_Reader], list[str], str]:
    """All layers that read the output's channels, all tensors that carry them, and why that cannot be used."""
    rank = len(shape(norm.inputs[0]) or ())
    axis = integer(norm, "axis", -1) % rank
    if axis != rank - 1:
        return [], [], f"normalises {rank - axis} axes"
    if any(constant(value) is None for value in norm.inputs[1:]):
        return [], [], "its scale or bias is computed"
    readers: list[_Reader] = []
    tensors: list[str] = []
    pending = [(norm.outputs[0], axis)]
    while pending:
        value, channel = pending.pop()
        tensors.append(str(value.name))
        if value.is_graph_output():
            return [], [], "its output is the model's output"
        for node in value.consumers():
            reader, moved = _reader(node, value, channel), _moved_axis(node, channel)
            if reader is not None:
                readers.append(reader)
            elif moved is not None:
                pending.append((node.outputs[0], moved))
            else:
                return [], [], f"its output is also read by {node.op_type} {output_name(node)}"
    return readers, tensors, ""


def _reader(node: ir.Node, value: ir.Value, channel: int) -> _Reader | None:
    """`node` with the axis of its weight that meets the channels; None when it is no layer that can take the factor."""
    if node.op_type not in ("MatMul", "Gemm", "Conv") or [i for i, v in enumerate(node.inputs) if v is value] != [0]:
        return None
    weight, dims = constant(node.inputs[1]), shape(value) or ()
    if weight is None:
        return None
    if node.op_type == "Conv":
        group = integer(node, "group", 1)
        depthwise = group == weight.shape[0] == dims[1]
        return _Reader(node, 1 if group == 1 else 0, weight) if channel == 1 and (group == 1 or depthwise) else None
    if weight.ndim != 2 or channel != len(dims) - 1 or integer(node, "transA", 0):
        return None
    return _Reader(node, 1 if integer(node, "transB", 0) else 0, weight)


def _moved_axis(node: ir.Node, channel: int) -> int | None:
    """Where the channel axis is after a Transpose or a Reshape that keeps it whole."""
    if node.op_type == "Transpose":
        order = integers(node, "perm", ())
        return order.index(channel) if order else None
    before, after = shape(node.inputs[0]), shape(node.outputs[0])
    if node.op_type not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") or before is None or after is None:
        return None
    outer = math.prod(before[:channel])
    for axis, size in enumerate(after):
        if size == before[channel] and math.prod(after[:axis]) == outer:
            return axis
    return None


def _unsuitable(norm: ir.Node, plan: PrecisionPlan, readers: list[_Reader], measured: TensorRange | None) -> str:
    if not any(plan.eight_bit(output_name(reader.node)) for reader in readers):
        return "nothing that reads it is quantised"
    if measured is None or measured.channel_amax is None:
        return "no range per channel was measured"
    channels = (shape(norm.outputs[0]) or (0,))[-1]
    if len(measured.channel_amax) != channels:
        return f"{len(measured.channel_amax)} channel ranges for {channels} channels"
    return ""


def _factors(readers: list[_Reader], peaks: F64, alpha: float) -> F64:
    weights = np.zeros_like(peaks)
    for reader in readers:
        weight = np.abs(reader.weight.astype(np.float64))
        others = tuple(i for i in range(weight.ndim) if i != reader.axis)
        weights = np.maximum(weights, weight.max(axis=others))
    s = np.ones_like(peaks)
    usable = (peaks > 0) & (weights > 0)
    s[usable] = peaks[usable] ** alpha / weights[usable] ** (1 - alpha)
    # A common factor changes no quantisation; a mean of one keeps the tensors where they were in FP16's range.
    s[usable] /= np.exp(np.log(s[usable]).mean()) if usable.any() else 1.0
    return s


def _errors(
    readers: list[_Reader], plan: PrecisionPlan, ranges: Ranges, rescaled: Mapping[str, TensorRange], s: F64,
    stored: str, evidence: Evidence,
) -> tuple[float, float]:  # fmt: skip
    """Summed over the INT8 readers, as they are and rescaled."""
    before = after = 0.0
    for reader in readers:
        node, source = reader.node, str(reader.node.inputs[0].name)  # type: ignore[union-attr]
        if not plan.eight_bit(output_name(node)):
            continue
        weight, axis = reader.weight.astype(np.float32), scale_axis(node, plan)
        scaled = (weight * _along(s, reader)).astype(np.float32)
        plain, moved = (
            dequantise(quantise(w, scale, axis), scale, axis)
            for w, scale in ((w, weight_scales(w, axis, stored)) for w in (weight, scaled))
        )
        before += evidence.error(node, ranges.tensors[source].amax, stored, plain)
        after += evidence.error(node, rescaled[source].amax, stored, moved, factor=s)
    return before, after


def _along(s: F64, reader: _Reader) -> F64:
    """`s` along the channels that the weight meets."""
    shape = [1] * reader.weight.ndim
    shape[reader.axis] = -1
    return s.reshape(shape)


def _fold(editor: Editor, norm: ir.Node, readers: list[_Reader], s: F64) -> None:
    def scale(node: ir.Node, index: int, factor: F64) -> None:
        value = node.inputs[index]
        old = constant(value)
        assert value is not None
        assert old is not None
        new = (old.astype(np.float64) * factor).astype(old.dtype)
        node.replace_input_with(index, editor.initializer(new, f"{value.name}__smooth"))

    for index in range(1, len(norm.inputs)):
        scale(norm, index, 1 / s)
    for reader in readers:
        scale(reader.node, 1, _along(s, reader))


def _rescaled(old: TensorRange, s: F64) -> TensorRange:
    if old.channel_amax is None:
        return old
    peaks = np.asarray(old.channel_amax, np.float64)
    new = peaks / s
    ratio = float(new.max() / peaks.max()) if peaks.max() > 0 else 1.0
    mean = None if old.channel_mean is None else tuple((np.asarray(old.channel_mean) / s).tolist())
    return TensorRange(
        old.amax * ratio,
        old.low * ratio,
        high=old.high * ratio,
        rms=old.rms * ratio,
        channel_amax=tuple(new.tolist()),
        channel_mean=mean,
    )  # a clipping method keeps the share of the largest channel that it clipped


def _unevenness(peaks: F64) -> float:
    return float(peaks.max() / max(float(np.median(peaks)), 1e-30))
