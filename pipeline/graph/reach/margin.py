"""Where the output of a network lies in its window, where it is smaller because convolutions in it are not padded."""

from __future__ import annotations

import onnx_ir as ir

from engines.tiling.placement import Margin
from pipeline.graph.reach.theory import field_of
from pipeline.graph.surgery import shape


def laid(model: ir.Model) -> tuple[int, Margin] | None:
    """The output's stride, and the pixels of the window around what it labels.

    By what the first and the last unit read: the middle of both fields is the middle of the output.  None where the
    output covers the window, where it has not one stride along both axes, or where what it reads cannot be told.
    Every value has its static shape.
    """
    window, output = shape(model.graph.inputs[0]), shape(model.graph.outputs[0])
    assert window is not None
    if output is None or len(output) != 4 or min(output[2:]) < 2:
        return None
    (height, width), (rows, columns) = window[2:], output[2:]
    told = field_of(model, [(0, 0), (rows - 1, columns - 1)])
    if told is None:
        return None
    axes = [_along(first, last, count) for first, last, count in zip(told[0], told[1], (rows, columns), strict=True)]
    (stride, top), (across, left) = axes
    bottom, right = height - rows * stride - top, width - columns * stride - left
    if stride != across or min(top, left, bottom, right) < 0 or max(top + bottom, left + right) < stride:
        return None
    return stride, (top, left, bottom, right)


def _along(first: tuple[int, int], last: tuple[int, int], count: int) -> tuple[int, int]:
    """Stride and first pixel of `count` units, of which the first and the last read these pixels."""
    stride = max(1, round((sum(last) - sum(first)) / 2 / (count - 1)))
    return stride, (first[0] + last[1] + 1 - count * stride) // 2
