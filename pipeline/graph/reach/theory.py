"""The theoretical receptive field: which pixels can reach the unit in the middle of a map at all, by the graph alone.

From the unit backwards, node by node, an interval along each axis is widened to what the node reads: a convolution or
pooling of kernel k, dilation d, stride s and padding p reads, for the outputs a..b, the inputs s*a - p .. s*b - p +
d*(k - 1), which is how 1 + sum over layers of d*(k - 1) * (product of the strides before) comes about.  Attention and
pooling over the whole map read all of it; at which stride their keys lie is told apart.  Borders do not cut the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from pipeline.graph.reach.axes import REDUCTIONS, Layout, Layouts, cuts, layouts
from pipeline.graph.surgery import constant, integer, integers, shape, text

Interval = tuple[int, int]  # first and last index, of which a map may have fewer
Box = tuple[Interval, Interval]  # rows and columns
ALL: Box = ((-(10**9), 10**9), (-(10**9), 10**9))


@dataclass(frozen=True)
class Reach:
    """Of one map.  local: rows and columns of pixels that convolutions, poolings and resizes alone let through.

    corner: (row, column) of the first of them, which may lie outside of the image.
    key_strides: pixels between the keys of each kind of attention (or of whole-map pooling) on the way, through which
    every pixel counts; empty where there is none.  declined: why it could not be told, or "".
    """

    local: tuple[int, int] = (0, 0)
    corner: tuple[int, int] = (0, 0)
    key_strides: tuple[int, ...] = ()
    declined: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "global": bool(self.key_strides)}

    def __str__(self) -> str:
        if self.declined:
            return f"not told: {self.declined}"
        everywhere = f", all through keys at {'/'.join(map(str, self.key_strides))} px" if self.key_strides else ""
        return f"{self.local[0]}x{self.local[1]} px{everywhere}"


class _Unknown(Exception):
    """An operator whose reading is not known."""


def reaches(model: ir.Model) -> dict[str, Reach]:
    """The field of the centre unit of every output of `model`, by the output's name.

    Every value has its static shape; the one input is (1, 3, H, W).
    """
    image = model.graph.inputs[0]
    window = shape(image)
    assert window is not None
    found = layouts(model)
    return {str(out.name): _reach(model, out, found, (window[2], window[3])) for out in model.graph.outputs}


def _reach(model: ir.Model, output: ir.Value, found: Layouts, window: tuple[int, int]) -> Reach:
    """Back from `output`, through what attention reads of its own token alone."""
    grid = next((axis.grid for axis in found.of.get(output, ()) if axis is not None), None)
    if grid is None:
        return Reach(declined=found.lost.get(output, "it does not lie over the image"))
    centre = (grid[0] // 2, grid[1] // 2)
    try:
        box, keys = _followed(model, output, centre, found)
    except _Unknown as reason:
        return Reach(declined=str(reason))
    strides = tuple(sorted({round(window[0] / rows) for rows, _ in keys}))
    if box is None:
        return Reach(key_strides=strides)
    rows, columns = box
    local = (rows[1] - rows[0] + 1, columns[1] - columns[0] + 1)
    return Reach(local, corner=(rows[0], columns[0]), key_strides=strides)


def field_of(model: ir.Model, units: Sequence[tuple[int, int]]) -> list[Box] | None:
    """The pixels that convolutions, poolings and resizes let reach units (row, column) of the one output.

    None where it cannot be told, or everything reaches them through attention alone.  Values as for `reaches`.
    """
    output, found = model.graph.outputs[0], layouts(model)
    if output not in found.of:
        return None
    try:
        boxes = [_followed(model, output, unit, found)[0] for unit in units]
    except _Unknown:
        return None
    told = [box for box in boxes if box is not None]
    return told if len(told) == len(boxes) else None


def _followed(
    model: ir.Model, output: ir.Value, unit: tuple[int, int], found: Layouts
) -> tuple[Box | None, set[tuple[int, int]]]:
    """What of the image one unit of `output` reads, None for nothing but through attention; and the keys' grids."""
    wanted: dict[ir.Value, Box] = {output: ((unit[0], unit[0]), (unit[1], unit[1]))}
    keys: set[tuple[int, int]] = set()
    for node in reversed(list(model.graph)):
        boxes = [wanted[value] for value in node.outputs if value in wanted]
        if not boxes:
            continue
        for value, box in _read(node, _union(boxes), found.of):
            if box == ALL:
                keys.add(next((axis.grid for axis in found.of[value] if axis is not None), (1, 1)))
            else:
                wanted[value] = _union([box, *([wanted[value]] if value in wanted else [])])
    return wanted.get(model.graph.inputs[0]), keys


def _read(node: ir.Node, box: Box, found: dict[ir.Value, Layout]) -> list[tuple[ir.Value, Box]]:
    """What `node` reads of each input that lies over the image to compute `box` of its output."""
    inputs = [value for value in node.inputs if value in found]
    if node.op_type == "MatMul" and len(inputs) == 2:
        return _attention(node, box, found)
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return [(value, rule(node, box)) for value in inputs[:1]]
    if node.op_type in _OVER_AXES and _over(node, inputs[0], found):
        return [(inputs[0], ALL)]
    return [(value, box) for value in inputs]


def _attention(node: ir.Node, box: Box, found: dict[ir.Value, Layout]) -> list[tuple[ir.Value, Box]]:
    """Queries by keys, or weights by values: the left side row by row, the right side whole."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None
    assert right is not None
    rows = found[left][-2]
    if rows is None:  # channels by channels: attention across channels sums over the whole map
        return [(left, ALL), (right, ALL)]
    return [(left, box), (right, ALL)]


def _over(node: ir.Node, value: ir.Value, found: dict[ir.Value, Layout]) -> bool:
    """Whether `node` computes over an axis that lies over the image, other than a second one: keys are whole anyway."""
    layout = found[value]
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "GroupNormalization"):
        return True
    if node.op_type == "LayerNormalization":
        first = integer(node, "axis", -1)
        over: Sequence[int] = range(first % len(layout), len(layout))
    elif node.op_type in ("Softmax", "LogSoftmax"):
        over = [integer(node, "axis", -1)]
    else:
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        listed = axes.ravel().tolist() if axes is not None else integers(node, "axes", range(len(layout)))
        over = [int(axis) for axis in listed]
    own = next((index for index, axis in enumerate(layout) if axis is not None), None)
    return own in {axis % len(layout) for axis in over}


_OVER_AXES = (
    *REDUCTIONS, "Softmax", "LogSoftmax", "LayerNormalization", "GlobalAveragePool", "GlobalMaxPool",
    "InstanceNormalization", "GroupNormalization",
)  # fmt: skip


def _slid(node: ir.Node, box: Box) -> Box:
    """Conv, MaxPool and AveragePool."""
    if text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise _Unknown(f"{node.op_type} with auto_pad")
    weight = shape(node.inputs[1]) if node.op_type == "Conv" else None
    kernel = integers(node, "kernel_shape", weight[2:] if weight else ())
    strides, dilations = (integers(node, name, (1, 1)) for name in ("strides", "dilations"))
    pads = integers(node, "pads", (0, 0, 0, 0))
    sides = [
        (first * s - p, last * s - p + d * (k - 1))
        for (first, last), k, s, d, p in zip(box, kernel, strides, dilations, pads, strict=False)
    ]
    return sides[0], sides[1]


def _spread(node: ir.Node, box: Box) -> Box:
    """ConvTranspose: output o takes the inputs i with o = s*i - p + d*t for a tap t of the kernel."""
    weight = shape(node.inputs[1])
    kernel = integers(node, "kernel_shape", weight[2:] if weight else ())
    strides, dilations = (integers(node, name, (1, 1)) for name in ("strides", "dilations"))
    pads = integers(node, "pads", (0, 0, 0, 0))
    sides = [
        (math.ceil((first + p - d * (k - 1)) / s), math.floor((last + p) / s))
        for (first, last), k, s, d, p in zip(box, kernel, strides, dilations, pads, strict=False)
    ]
    return sides[0], sides[1]


def _resized(node: ir.Node, box: Box) -> Box:
    """Resize: the neighbours of each output's place, by the coordinates that the node says; without antialiasing."""
    source, target = shape(node.inputs[0]), shape(node.outputs[0])
    mode, where = text(node, "mode", "nearest"), text(node, "coordinate_transformation_mode", "half_pixel")
    if source is None or target is None or mode not in _NEIGHBOURS or integer(node, "antialias", 0):
        raise _Unknown(f"Resize of mode {mode}")
    sides = []
    for (first, last), size, new in zip(box, source[2:], target[2:], strict=True):
        places = [_place(index, size, new, where) for index in (first, last)]
        low, high = _NEIGHBOURS[mode]
        sides.append((low(places[0]), high(places[1])))
    return sides[0], sides[1]


def _place(index: int, size: int, new: int, where: str) -> float:
    if where == "align_corners":
        return index * (size - 1) / (new - 1) if new > 1 else 0.0
    if where == "asymmetric":
        return index * size / new
    if where in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
        return (index + 0.5) * size / new - 0.5
    raise _Unknown(f"Resize by {where}")


_Bound = Callable[[float], int]
# Of a place, the first and the last source index that is read.  A place that falls on a sample reads that one alone.
_NEIGHBOURS: dict[str, tuple[_Bound, _Bound]] = {
    "nearest": (lambda x: math.floor(x + 0.5 - 1e-9), lambda x: math.floor(x + 0.5)),
    "linear": (lambda x: math.floor(x + 1e-9), lambda x: math.ceil(x - 1e-9)),
    "cubic": (lambda x: math.floor(x + 1e-9) - 1, lambda x: math.ceil(x - 1e-9) + 1),
}


def _padded(node: ir.Node, box: Box) -> Box:
    pads = constant(node.inputs[1])
    if pads is None or pads.size != 8:
        raise _Unknown("Pad of computed sizes")
    top, left = int(pads.ravel()[2]), int(pads.ravel()[3])
    return (box[0][0] - top, box[0][1] - top), (box[1][0] - left, box[1][1] - left)


def _cropped(node: ir.Node, box: Box) -> Box:
    """Slice: of a map every step-th row and column from a start on; of tokens all that lie over the image."""
    own = shape(node.inputs[0]) or ()
    if len(own) != 4:
        return box
    cut = {axis: (start, step) for axis, start, step in cuts(node, own)}
    (top, down), (left, across) = cut.get(2, (0, 1)), cut.get(3, (0, 1))
    rows, columns = box
    return (
        (rows[0] * down + top, rows[1] * down + top),
        (columns[0] * across + left, columns[1] * across + left),
    )


_RULES: dict[str, Callable[[ir.Node, Box], Box]] = {
    "Conv": _slid, "MaxPool": _slid, "AveragePool": _slid, "ConvTranspose": _spread, "Resize": _resized, "Pad": _padded,
    "Slice": _cropped,
}  # fmt: skip


def _union(boxes: Sequence[Box]) -> Box:
    rows, columns = ((min(box[side][0] for box in boxes), max(box[side][1] for box in boxes)) for side in (0, 1))
    return rows, columns
