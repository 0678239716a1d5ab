"""Bias correction: take back the mean error that rounding the weights makes.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, arXiv 1906.04721,
section 4.2: E[x W] - E[x Wq] = E[x](W - Wq) is added to the bias; E[x] per input channel comes from calibration. For a
convolution the mean of a channel stands for every tap, so zero padding at the border is neglected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calib.ranges.ranges import Ranges
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.view import GraphView, attribute, fresh, names_of, view
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import weight_axis
from pipeline.precision.quantise import dequantise, quantise, weight_scales

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Correction:
    """One quantised node, named by its first output.  largest: the largest change of a bias, in activation units."""

    output: str
    declined: str = ""
    largest: float = 0.0


def correct_bias(
    graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, stored: str = "fp32"
) -> tuple[OnnxGraph, tuple[Correction, ...]]:
    """The float graph with corrected biases; `lower_int8` with the same `plan` and `stored` makes the error they
    cancel.
    """
    shown = view(graph.model)
    taken = names_of(graph.model)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    copies = {node.output[0]: node for node in model.graph.node}
    report = []
    for node in shown.nodes:
        if plan.precision(node.output[0]) != "int8":
            continue
        place = _bias(shown, node)
        mean = _mean(ranges, node)
        delta = None if mean is None else _mean_error(shown, node, mean, stored)
        if isinstance(place, str) or delta is None:
            declined = place if isinstance(place, str) else "no mean per channel was measured"
            report.append(Correction(node.output[0], declined))
            continue
        holder, index = place
        old = shown.constants[holder.input[index]] if index < len(holder.input) else np.zeros(delta.shape, np.float32)
        name = fresh(taken, f"{node.output[0]}__bias")
        new = (old.astype(np.float64) + delta.reshape(-1)).astype(old.dtype)
        model.graph.initializer.append(numpy_helper.from_array(new, name))
        copy = copies[holder.output[0]]
        if index < len(copy.input):
            copy.input[index] = name
        else:
            copy.input.append(name)
        report.append(Correction(node.output[0], "", float(np.abs(delta).max())))
    done = sum(not item.declined for item in report)
    if not done:
        return graph.declined("bias correction", "no quantised node has a bias and a mean"), tuple(report)
    return graph.then(model, f"bias correction: {done} of {len(report)} nodes"), tuple(report)


def _bias(shown: GraphView, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | str:
    """(node, input index) of the constant to which the correction is added, or why there is none."""
    if node.op_type in ("Conv", "Gemm"):
        if len(node.input) < 3 or not node.input[2]:
            return (node, 2) if node.op_type == "Conv" and len(node.input) == 2 else "it has no bias"
        bias = shown.constants.get(node.input[2])
        if bias is None or bias.ndim != 1 or float(str(attribute(node, "beta", 1.0))) != 1.0:
            return "its bias is not a constant vector"
        return node, 2
    readers = shown.consumers.get(node.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add" or node.output[0] == shown.output:
        return "no bias is added to it"
    for index, name in enumerate(readers[0].input):
        value = shown.constants.get(name)
        if value is not None and value.shape == shown.shapes[node.output[0]][-1:]:
            return readers[0], index
    return "no constant bias vector is added to it"


def _mean(ranges: Ranges, node: onnx.NodeProto) -> F64 | None:
    measured = ranges.tensors.get(node.input[0])
    return None if measured is None or measured.channel_mean is None else np.asarray(measured.channel_mean, np.float64)


def _mean_error(shown: GraphView, node: onnx.NodeProto, mean: F64, stored: str) -> F64 | None:
    """E[x](W - Wq) per output channel; None when the means are not those of the input channels."""
    weight = shown.constants[node.input[1]].astype(np.float32)
    axis = weight_axis(node)
    scale = weight_scales(weight, axis, stored)
    error = weight.astype(np.float64) - dequantise(quantise(weight, scale, axis), scale, axis)
    if node.op_type == "Conv":
        group = int(str(attribute(node, "group", 1)))
        outputs, per_group = weight.shape[:2]
        if mean.size != per_group * group:
            return None
        taps = error.reshape(outputs, per_group, -1).sum(-1)
        of_output = mean.reshape(group, per_group).repeat(outputs // group, 0)
        return np.asarray((taps * of_output).sum(-1))
    inner = error.T if axis == 0 else error
    scale_by = float(str(attribute(node, "alpha", 1.0)))
    return None if mean.size != inner.shape[0] else np.asarray(scale_by * (mean @ inner))
