"""Quantised layers as products: rows of what they read times a matrix, at sampled places of their output.

A convolution at one output pixel is the product of the patch that it reads with its weights, so that what is fitted to
a Linear layer (a bias, a rounding) is fitted to a convolution in the same way, its padding included.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from engines.contract import Float32
from pipeline.graph.surgery import integer, integers, shape, text
from pipeline.precision.plan_int8 import weight_axis

Places = NDArray[np.int64]
Number = TypeVar("Number", bound=np.generic)


def places(node: ir.Node, count: int, rng: np.random.Generator) -> Places:
    """Indices of at most `count` different outputs of `node`: pixels of a convolution, rows of a product."""
    size = shape(node.outputs[0]) or ()
    total = math.prod(size[2:] if node.op_type == "Conv" else size[:-1])
    return np.sort(rng.choice(total, min(count, total), replace=False))


def rows(node: ir.Node, value: Float32, chosen: Places) -> Float32:
    """(groups, n, d): what the outputs at `chosen` are made from.  value: the input of `node`, of one window."""
    if node.op_type != "Conv":
        return value.reshape(1, -1, value.shape[-1])[:, chosen]
    kernel, size = (shape(node.inputs[1]) or ())[2:], (shape(node.outputs[0]) or ())[2:]
    strides, dilations = integers(node, "strides", (1, 1)), integers(node, "dilations", (1, 1))
    before, after = _pads(node, value.shape[2:], kernel, size)
    padded = np.pad(value[0], ((0, 0), *zip(before, after, strict=True)))
    y, x = np.divmod(chosen, size[1])
    taps = [
        padded[:, y * strides[0] + i * dilations[0], x * strides[1] + j * dilations[1]]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    patches = np.stack(taps, 1)  # (C, taps, n)
    group = integer(node, "group", 1)
    return np.ascontiguousarray(patches.reshape(group, -1, len(chosen)).swapaxes(1, 2))


def matrix(node: ir.Node, weight: NDArray[Number]) -> NDArray[Number]:
    """(groups, d, outputs of a group): `weight` as what `rows` are multiplied with; of a Gemm without its alpha."""
    if node.op_type == "Conv":
        group = integer(node, "group", 1)
        return weight.reshape(group, weight.shape[0] // group, -1).swapaxes(1, 2)
    return (weight.T if weight_axis(node) == 0 else weight)[None]


def from_matrix(node: ir.Node, values: NDArray[Number], stored: tuple[int, ...]) -> NDArray[Number]:
    """Inverse of `matrix`: in the layout in which the node stores its weight, of shape `stored`."""
    if node.op_type == "Conv":
        return np.ascontiguousarray(values.swapaxes(1, 2)).reshape(stored)
    return np.ascontiguousarray(values[0].T if weight_axis(node) == 0 else values[0])


def spread(factor: NDArray[np.float64], of: tuple[int, ...]) -> Float32:
    """`factor`, one number a channel of the input, along rows of shape `of`: (groups or 1, 1, d)."""
    groups, _, depth = of
    per_group = factor.reshape(groups, -1).astype(np.float32)
    return np.repeat(per_group, depth // per_group.shape[1], 1)[:, None]


def _pads(
    node: ir.Node, given: tuple[int, ...], kernel: tuple[int, ...], size: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """Zeros before and after each axis; of `auto_pad` as ONNX defines it."""
    mode = text(node, "auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = integers(node, "pads", (0, 0, 0, 0)) if mode == "NOTSET" else (0, 0, 0, 0)
        return list(pads[:2]), list(pads[2:])
    strides, dilations = integers(node, "strides", (1, 1)), integers(node, "dilations", (1, 1))
    total = [max((size[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - given[i], 0) for i in range(2)]
    less = [t // 2 for t in total]
    more = [t - half for t, half in zip(total, less, strict=True)]
    return (less, more) if mode == "SAME_UPPER" else (more, less)
