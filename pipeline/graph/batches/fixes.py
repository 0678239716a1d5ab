"""What each operator that can bake a batch of one into a constant says instead.

A fix changes its node in place, and may put nodes before it.  It leaves alone what needs no change; whether the result
holds for several windows is checked by the walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from pipeline.graph.batches.walk import Declined, Shape, Walk, label
from pipeline.graph.view import attribute, fresh


def fix_reshape(walk: Walk, node: onnx.NodeProto) -> None:
    """The entry that holds the windows becomes 0 ("as in the input") where it stays what it was, else -1.

    A reshape moves nothing, and the windows lie one after the other: whichever axis begins where the axis of the
    windows began holds them after it, times what was merged with them: (1, heads, L, d) -> (heads, L, d).
    """
    target = walk.constant(node.input[1])
    if target is None:
        raise Declined(f"{label(node)}: Reshape to a shape that is computed at run time")
    name = _target(walk, node, target, node.input[1])
    if name != node.input[1]:
        node.input[1] = name
        _without(node, "allowzero")


def fix_squeeze(walk: Walk, node: onnx.NodeProto) -> None:
    """Where it drops or passes over the axis of the windows, it becomes the Reshape that merges them with the next."""
    one = walk.shown.shapes[node.input[0]]
    axis, out = walk.axis(node.input[0]), walk.shown.shapes[node.output[0]]
    axes = walk.constant(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
    dropped = [a % len(one) for a in axes] if isinstance(axes, list) else [a for a, size in enumerate(one) if size == 1]
    if axis in dropped:
        _to_reshape(walk, node, out)


def fix_unsqueeze(walk: Walk, node: onnx.NodeProto) -> None:
    """(L, C) that holds N windows of L rows becomes (N, L, C), not (1, N L, C)."""
    axis, one = walk.axis(node.input[0]), walk.shown.shapes[node.input[0]]
    out = walk.shown.shapes[node.output[0]]
    if axis == 0 and one[0] != 1 and out[0] == 1:
        _to_reshape(walk, node, out)


def fix_expand(walk: Walk, node: onnx.NodeProto) -> None:
    """An entry that only repeats the axis of the windows becomes 1, which keeps it."""
    target = walk.constant(node.input[1])
    axis, one = walk.axis(node.input[0]), walk.shown.shapes[node.input[0]]
    if target is None or axis is None:
        return
    place = axis - len(one) + len(target)
    if place >= 0 and target[place] == one[axis] != 1:
        target[place] = 1
        node.input[1] = walk.store(target, node, "shape")


def fix_resize(walk: Walk, node: onnx.NodeProto) -> None:
    """Sizes, which name the batch, become the scales that they stand for, where those give the same sizes exactly."""
    sizes = walk.constant(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    before = walk.shown.shapes[node.input[0]]
    axes = attribute(node, "axes")
    if sizes is None or (isinstance(axes, list) and walk.axis(node.input[0]) not in axes):
        return
    if len(sizes) != len(before) or sizes[0] != before[0] or walk.axis(node.input[0]) != 0:
        raise Declined(f"{label(node)}: Resize along the axis of the windows")
    scales = np.array(sizes, np.float32) / np.array(before, np.float32)
    exact = np.array_equal(scales.astype(np.float64) * before, sizes)  # else a size may be rounded down to one less
    if exact and attribute(node, "keep_aspect_ratio_policy", b"stretch") == b"stretch":
        inputs = [node.input[0], node.input[1], walk.store(scales, node, "scales")]
    elif before[0] == 1:
        inputs = [*node.input[:3], walk.shape_like(node.input[0], sizes[1:], node)]
    else:
        raise Declined(f"{label(node)}: Resize of {before} to {sizes}, whose windows are merged with something")
    del node.input[:]
    node.input.extend(inputs)


def fix_concat(walk: Walk, node: onnx.NodeProto) -> None:
    """What is the same for every window, as a class token (1, 1, C), is repeated for each."""
    batched = next(name for name in node.input if walk.axis(name) is not None)
    axis, rank = walk.axis(batched), len(walk.probed[batched])
    if attribute(node, "axis") in (axis, (axis or 0) - rank):
        return
    for index, name in enumerate(node.input):
        shape = walk.shown.shapes[name]
        if walk.axis(name) is not None or axis != 0 or shape[0] != 1 or walk.shown.shapes[batched][0] != 1:
            continue
        expanded = fresh(walk.taken, f"{node.output[0]}/any_batch/expand")
        target = walk.shape_like(batched, shape[1:], node)
        walk.nodes.append(helper.make_node("Expand", [name, target], [expanded], expanded))
        walk.shown.shapes[expanded], walk.shown.types[expanded] = shape, walk.shown.types[name]
        walk.probed[expanded] = walk.computed[target]
        node.input[index] = expanded


FIXES: dict[str, Callable[[Walk, onnx.NodeProto], None]] = {
    "Reshape": fix_reshape,
    "Squeeze": fix_squeeze,
    "Unsqueeze": fix_unsqueeze,
    "Expand": fix_expand,
    "Resize": fix_resize,
    "Concat": fix_concat,
}


def _target(walk: Walk, node: onnx.NodeProto, target: list[int], name: str) -> str:
    """A constant like `target` that follows the number of windows; `name` itself where it does already."""
    one, out = walk.shown.shapes[node.input[0]], walk.shown.shapes[node.output[0]]
    axis = walk.axis(node.input[0])
    assert axis is not None
    place, outer = _place(one, out, axis, walk.outer.get(node.input[0], 1))
    if place < 0:
        raise Declined(f"{label(node)}: Reshape of {one} to {out} puts the windows across two axes")
    walk.outer[node.output[0]] = outer
    new = list(target)
    if axis < len(target) and target[axis] == 0:  # copies the windows to where others may be
        new[axis] = out[axis]
    if target[place] == -1:
        pass
    elif place == axis and one[axis] == out[axis]:
        new[place] = 0
    else:
        new = [size if value == -1 else value for value, size in zip(new, out, strict=True)]
        new[place] = -1
    return name if new == target else walk.store(new, node, "shape")


def _place(one: Shape, out: Shape, axis: int, outer: int) -> tuple[int, int]:
    """Where the windows are after a reshape of `one` to `out`, and how many times over; or (-1, 1).

    What is before them in memory stays before them.  Where axes could begin exactly with them, the same one as before
    is preferred.  They are never merged into the last axis, the channels, while they can go to what is before them.
    """
    before = math.prod(one[:axis]) * outer
    exact = [place for place in range(len(out)) if math.prod(out[:place]) == before]
    place = axis if axis in exact else exact[0] if exact else -1
    if place >= 0 and (place < len(out) - 1 or place == 0 or out[place] == 1 or out == one):
        return place, 1
    for flat in range(axis):
        if out[:flat] == one[:flat] and out[flat : flat + 1] == (math.prod(one[flat : axis + 1]),):
            return flat, before // math.prod(out[:flat])
    return place, 1


def _to_reshape(walk: Walk, node: onnx.NodeProto, out: Shape) -> None:
    target = _target(walk, node, list(out), "")
    node.op_type = "Reshape"
    del node.attribute[:], node.input[1:]
    node.input.append(target or walk.store(out, node, "shape"))


def _without(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
