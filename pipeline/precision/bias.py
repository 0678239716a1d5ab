"""Bias correction: take back the mean error that rounding the weights makes.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv 1906.04721,
section 4.2: E[x W] - E[x Wq] = E[x](W - Wq) is added to the bias; E[x] per input channel comes from calibration. For a
convolution the mean of a channel stands for every tap, so zero padding at the border is neglected.  Where there is
evidence, a layer keeps its correction only if that lowers the error of its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Editor, constant, drop_unread, integer, number, only_use, output_name, shape
from pipeline.precision.evidence import Evidence
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import scale_axis, weight_axis
from pipeline.precision.quantise import F32, NEAREST, Int8, dequantise, quantise, weight_scales

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """One quantised node, named by its first output.  largest: the largest change of a bias, in activation units.

    before, after: relative squared error of its output, None where it was not measured (see `evidence`).
    """

    output: str
    declined: str = ""
    largest: float = 0.0
    before: float | None = None
    after: float | None = None


def correct_bias(
    graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, stored: str = "fp32", evidence: Evidence | None = None,
    learned: Mapping[str, Int8] = NEAREST,
) -> tuple[OnnxGraph, tuple[Correction, ...]]:  # fmt: skip
    """The float graph with corrected biases; `lower_int8` with the same `plan`, `stored` and `learned` makes the error
    they cancel.  evidence: of `graph`, to judge each correction by; without, all are kept.
    """
    model = graph.model.clone()
    editor, report = Editor(model), []
    for node in list(model.graph):
        if plan.eight_bit(output_name(node)):
            weight = _quantised(node, scale_axis(node, plan), stored, learned)
            report.append(_correct(editor, node, weight, ranges, stored, evidence))
    drop_unread(model)
    done = sum(not item.declined for item in report)
    if not done:
        return graph.declined("bias correction", "no quantised node has a bias and a mean"), tuple(report)
    return graph.then(model, f"bias correction: {done} of {len(report)} nodes"), tuple(report)


def _correct(
    editor: Editor, node: ir.Node, weight: F32, ranges: Ranges, stored: str, evidence: Evidence | None
) -> Correction:
    """weight: as `lower_int8` will leave it."""
    name, place, mean = output_name(node), _bias(node), _mean(ranges, node)
    delta = None if mean is None else _mean_error(node, mean, weight)
    if isinstance(place, str) or delta is None:
        return Correction(name, place if isinstance(place, str) else "no mean per channel was measured")
    before = after = None
    if evidence is not None:
        amax = ranges.tensors[str(node.inputs[0].name)].amax  # type: ignore[union-attr]
        before = evidence.error(node, amax, stored, weight)
        # What is added to the bias is added after the alpha of a Gemm.
        after = evidence.error(node, amax, stored, weight, correction=delta.reshape(-1) / _alpha(node))
        if after >= before:
            return Correction(name, "it lowers no error", 0.0, before, after=after)
    holder, index = place
    old = constant(holder.inputs[index]) if index < len(holder.inputs) else None
    old = np.zeros(delta.shape, np.float32) if old is None else old
    new = editor.initializer((old.astype(np.float64) + delta.reshape(-1)).astype(old.dtype), f"{name}__bias")
    holder.resize_inputs(max(index + 1, len(holder.inputs)))
    holder.replace_input_with(index, new)
    return Correction(name, "", float(np.abs(delta).max()), before, after=after)


def _bias(node: ir.Node) -> tuple[ir.Node, int] | str:
    """(node, input index) of the constant to which the correction is added, or why there is none."""
    if node.op_type in ("Conv", "Gemm"):
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return (node, 2) if node.op_type == "Conv" and len(node.inputs) == 2 else "it has no bias"
        bias = constant(node.inputs[2])
        if bias is None or bias.ndim != 1 or number(node, "beta", 1.0) != 1.0:
            return "its bias is not a constant vector"
        return node, 2
    reader = only_use(node.outputs[0])
    if reader is None or reader.op_type != "Add":
        return "no bias is added to it"
    for index, other in enumerate(reader.inputs):
        value = constant(other)
        if value is not None and value.shape == (shape(node.outputs[0]) or ())[-1:]:
            return reader, index
    return "no constant bias vector is added to it"


def _mean(ranges: Ranges, node: ir.Node) -> F64 | None:
    value = node.inputs[0]
    measured = None if value is None else ranges.tensors.get(str(value.name))
    return None if measured is None or measured.channel_mean is None else np.asarray(measured.channel_mean, np.float64)


def _alpha(node: ir.Node) -> float:
    return number(node, "alpha", 1.0) if node.op_type == "Gemm" else 1.0


def _quantised(node: ir.Node, axis: int | None, stored: str, learned: Mapping[str, Int8]) -> F32:
    """The weight that `lower_int8` will leave."""
    array = constant(node.inputs[1])
    assert array is not None, "only layers with constant weights are quantised"
    weight = array.astype(np.float32)
    scale = weight_scales(weight, axis, stored)
    values = learned.get(str(node.inputs[1].name))  # type: ignore[union-attr]
    return dequantise(quantise(weight, scale, axis) if values is None else values, scale, axis)


def _mean_error(node: ir.Node, mean: F64, quantised: F32) -> F64 | None:
    """E[x](W - Wq) per output channel; None when the means are not those of the input channels."""
    array = constant(node.inputs[1])
    assert array is not None, "only layers with constant weights are quantised"
    weight, axis = array.astype(np.float32), weight_axis(node)
    error = weight.astype(np.float64) - quantised
    if node.op_type == "Conv":
        group = integer(node, "group", 1)
        outputs, per_group = weight.shape[:2]
        if mean.size != per_group * group:
            return None
        taps = error.reshape(outputs, per_group, -1).sum(-1)
        of_output = mean.reshape(group, per_group).repeat(outputs // group, 0)
        return np.asarray((taps * of_output).sum(-1))
    inner = error.T if axis == 0 else error
    return None if mean.size != inner.shape[0] else np.asarray(_alpha(node) * (mean @ inner))
