"""Which axes of a graph's tensors lie over the image: rows, columns, or tokens that are both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from pipeline.graph.surgery import constant, integer, integers, shape


@dataclass(frozen=True)
class Axis:
    """kind: ``y``, ``x``, or ``yx`` for tokens row by row.  grid: rows and columns of the map that it is of.

    lead: entries of a token axis before those of the grid, such as a class token.
    """

    kind: str
    grid: tuple[int, int]
    lead: int = 0


Layout = tuple[Axis | None, ...]  # one entry an axis; all None of what was pooled over the whole map


@dataclass(frozen=True)
class Layouts:
    """of: the layout of every value that depends on the image.  lost: why a value's could not be followed."""

    of: dict[ir.Value, Layout]
    lost: dict[ir.Value, str]


class _Lost(Exception):
    pass


def layouts(model: ir.Model) -> Layouts:
    """Followed from the input (1, 3, H, W) through every node; every value has its static shape."""
    image = model.graph.inputs[0]
    window = shape(image)
    assert window is not None
    found = Layouts({image: _over(window)}, {})
    for node in model.graph:
        inputs = [value for value in node.inputs if value in found.of or value in found.lost]
        if not inputs:
            continue
        lost = next((found.lost[value] for value in inputs if value in found.lost), "")
        for value in node.outputs:
            try:
                if lost:
                    raise _Lost(lost)
                found.of[value] = _layout(node, value, found.of)
            except _Lost as reason:
                found.lost[value] = str(reason)
    return found


def _layout(node: ir.Node, output: ir.Value, of: dict[ir.Value, Layout]) -> Layout:
    sizes, known = shape(output), [of.get(value, ()) if value is not None else () for value in node.inputs]
    if sizes is None:
        raise _Lost(f"{node.op_type} of unknown size")
    rule = _RULES.get(node.op_type)
    if rule is not None:
        layout = rule(node, sizes, known)
    elif node.op_type in _ELEMENTWISE:
        layout = _broadcast(node, sizes, known)
    else:
        raise _Lost(f"{node.op_type} is not followed")
    if len(layout) != len(sizes):
        raise _Lost(f"{node.op_type} of {len(sizes)} axes is not followed")
    return layout


def _over(sizes: Sequence[int]) -> Layout:
    """Of a map (N, C, h, w)."""
    grid = (sizes[2], sizes[3])
    return (None, None, Axis("y", grid), Axis("x", grid)) if grid != (1, 1) else (None,) * 4


def _map(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    if len(sizes) != 4 or any(known[0][:2]):
        raise _Lost(f"{node.op_type} over other axes than rows and columns")
    return _over(sizes)


def _transposed(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    order = integers(node, "perm", tuple(reversed(range(len(sizes)))))
    return tuple(known[0][axis] for axis in order)


def _broadcast(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    """Axes are aligned from the last; a label is that of any input that has one and that size."""
    layout: list[Axis | None] = [None] * len(sizes)
    for value, labels in zip(node.inputs, known, strict=True):
        own = shape(value) or ()
        for back in range(1, min(len(labels), len(sizes)) + 1):
            if labels[-back] is not None and own[-back] == sizes[-back]:
                layout[-back] = labels[-back]
    return tuple(layout)


def _reshaped(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    """Rows and columns may become tokens, tokens rows and columns; all other labelled axes have to stay whole."""
    before = shape(node.inputs[0])
    assert before is not None
    layout: list[Axis | None] = [None] * len(sizes)
    for old, new in _groups(before, sizes):
        labels = [known[0][axis] for axis in old if known[0][axis] is not None]
        if not labels:
            continue
        if len(old) == len(new) == 1:
            layout[new[0]] = labels[0]
        elif [axis.kind for axis in labels if axis] == ["y", "x"] and len(old) == 2 and len(new) == 1:
            layout[new[0]] = replace(_first(labels), kind="yx")
        elif len(new) == 2 and len(old) == 1 and (sizes[new[0]], sizes[new[1]]) == _first(labels).grid:
            layout[new[0]], layout[new[1]] = (replace(_first(labels), kind=kind) for kind in ("y", "x"))
        else:
            raise _Lost(f"{node.op_type} {before} to {tuple(sizes)} cuts the image into pieces")
    return tuple(layout)


def _first(labels: Sequence[Axis | None]) -> Axis:
    return next(axis for axis in labels if axis is not None)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of axes, in order, whose products agree; axes of size 1 are in none."""
    old, new = ([axis for axis, size in enumerate(sizes) if size != 1] for sizes in (before, after))
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        left, right = [old[i]], [new[j]]
        while (a := math.prod(before[k] for k in left)) != (b := math.prod(after[k] for k in right)):
            if a < b:
                i += 1
                left.append(old[i])
            else:
                j += 1
                right.append(new[j])
        groups.append((left, right))
        i, j = i + 1, j + 1
    return groups


def _product(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    """MatMul: rows of the left side, columns of the right one."""
    left, right = known[0], known[1]
    layout: list[Axis | None] = [None] * len(sizes)
    if len(left) > 1 and len(sizes) > 1:
        layout[-2] = left[-2]
    if right:
        layout[-1] = right[-1]
    if any(any(labels[:-2]) for labels in (left, right)):
        if left and right:
            raise _Lost("MatMul of many maps at once")
        for labels in (left, right):
            for back in range(3, len(labels) + 1):
                layout[-back] = labels[-back] or layout[-back]
    return tuple(layout)


def _gemm(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    if any(known[1:]) or integer(node, "transA", 0):
        raise _Lost("Gemm of two maps")
    return known[0][0], None


def _joined(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    """Concat, over channels, or of a class token before the others."""
    axis = integer(node, "axis", 0) % len(sizes)
    lead, labelled = 0, None
    for value, labels in zip(node.inputs, known, strict=True):
        if labels and labels[axis] is not None:
            if labelled is not None or _first([labels[axis]]).kind != "yx":
                raise _Lost("Concat of maps side by side")
            labelled = replace(_first([labels[axis]]), lead=lead + _first([labels[axis]]).lead)
        lead += (shape(value) or (0,))[axis]
    rest = next(labels for labels in known if labels)
    merged = [next((labels[i] for labels in known if labels and labels[i] is not None), None) for i in range(len(rest))]
    merged[axis] = labelled
    return tuple(merged)


def _sliced(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    layout, own = list(known[0]), shape(node.inputs[0]) or ()
    for axis, start, step in cuts(node, own):
        label = layout[axis]
        if label is None or sizes[axis] == own[axis]:
            continue
        if label.kind in ("y", "x") and len(sizes) == 4 and step >= 1 and not any(known[0][:2]):
            return _over(sizes)  # a crop of the map, or every other row and column of it
        whole = label.grid[0] * label.grid[1]
        if label.kind != "yx" or step != 1 or start != label.lead or sizes[axis] != whole:
            raise _Lost("Slice of a part of the image")
        layout[axis] = replace(label, lead=0)
    return tuple(layout)


def cuts(node: ir.Node, own: Sequence[int]) -> list[tuple[int, int, int]]:
    """Axis, first index and step of everything that a Slice of a tensor of size `own` cuts."""
    starts, ends, axes, steps = (constant(value) for value in (*node.inputs[1:], *(None,) * 4)[:4])
    if starts is None or ends is None:
        raise _Lost("Slice of computed places")
    found = []
    for index, start in enumerate(starts.ravel().tolist()):
        axis = (index if axes is None else int(axes.ravel()[index])) % len(own)
        first = max(0, start + own[axis]) if start < 0 else start
        found.append((axis, int(first), 1 if steps is None else int(steps.ravel()[index])))
    return found


def _split(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    if known[0][integer(node, "axis", 0)] is not None:
        raise _Lost("Split of the image")
    return known[0]


def _gathered(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    axis, indices = integer(node, "axis", 0) % max(1, len(known[0])), constant(node.inputs[1])
    if not known[0] or known[0][axis] is not None or indices is None or indices.ndim > 1:
        raise _Lost("Gather over the image")
    return (*known[0][:axis], *(None,) * indices.ndim, *known[0][axis + 1 :])


def _reduced(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    listed = axes.ravel().tolist() if axes is not None else integers(node, "axes", range(len(known[0])))
    over = {int(axis) % len(known[0]) for axis in listed}
    keep = integer(node, "keepdims", 1)
    return tuple(None if axis in over else label for axis, label in enumerate(known[0]) if keep or axis not in over)


def _pooled(node: ir.Node, sizes: Sequence[int], known: Sequence[Layout]) -> Layout:
    return (None,) * len(sizes)


REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")
_Rule = Callable[[ir.Node, Sequence[int], Sequence[Layout]], Layout]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize", "Pad"), _map),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(REDUCTIONS, _reduced),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _pooled),
    "Transpose": _transposed, "MatMul": _product, "Gemm": _gemm, "Concat": _joined, "Slice": _sliced, "Split": _split,
    "Gather": _gathered,
}  # fmt: skip
_ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Neg", "Abs", "Sqrt", "Exp", "Log", "Erf", "Reciprocal", "Where",
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSigmoid",
    "HardSwish", "Mish", "Gelu", "Clip", "Cast", "Identity", "Dropout", "Expand", "BatchNormalization",
    "InstanceNormalization", "GroupNormalization", "LayerNormalization", "Softmax", "LogSoftmax",
})  # fmt: skip
