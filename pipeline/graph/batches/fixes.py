"""What each operator that can bake a batch of one into a constant says instead.

A fix changes its node in place, may put nodes before it, and returns whether it did.  It leaves alone what needs no
change; whether the result holds for several windows is checked by the walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from pipeline.graph.batches.walk import Declined, Shape, Walk, label, one
from pipeline.graph.surgery import integer, integers, text


def fix_reshape(walk: Walk, node: ir.Node) -> bool:
    """The entry that holds the windows becomes 0 ("as in the input") where it stays what it was, else -1.

    A reshape moves nothing, and the windows lie one after the other: whichever axis begins where the axis of the
    windows began holds them after it, times what was merged with them: (1, heads, L, d) -> (heads, L, d).
    """
    target = _constant(node, 1)
    if target is None:
        raise Declined(f"{label(node)}: Reshape to a shape that is computed at run time")
    new = _target(walk, node, target)
    if new == target:
        return False
    node.replace_input_with(1, walk.store(new, node, "shape"))
    node.attributes.pop("allowzero", None)
    return True


def fix_squeeze(walk: Walk, node: ir.Node) -> bool:
    """Where it drops or passes over the axis of the windows, it becomes the Reshape that merges them with the next."""
    x = _input(node, 0)
    given = _constant(node, 1) if len(node.inputs) > 1 else list(integers(node, "axes", ())) or None
    sizes = one(x)
    dropped = [a for a, size in enumerate(sizes) if size == 1] if given is None else [a % len(sizes) for a in given]
    return walk.axis(x) in dropped and _to_reshape(walk, node)


def fix_unsqueeze(walk: Walk, node: ir.Node) -> bool:
    """(L, C) that holds N windows of L rows becomes (N, L, C), not (1, N L, C)."""
    x = _input(node, 0)
    merged = walk.axis(x) == 0 and one(x)[0] != 1 and one(node.outputs[0])[0] == 1
    return merged and _to_reshape(walk, node)


def fix_expand(walk: Walk, node: ir.Node) -> bool:
    """An entry that only repeats the axis of the windows becomes 1, which keeps it."""
    target, x = _constant(node, 1), _input(node, 0)
    axis, before = walk.axis(x), one(x)
    if target is None or axis is None:
        return False
    place = axis - len(before) + len(target)
    if place < 0 or not target[place] == before[axis] != 1:
        return False
    target[place] = 1
    node.replace_input_with(1, walk.store(target, node, "shape"))
    return True


def fix_resize(walk: Walk, node: ir.Node) -> bool:
    """Sizes, which name the batch, become the scales that they stand for, where those give the same sizes exactly."""
    sizes, x = _constant(node, 3) if len(node.inputs) > 3 else None, _input(node, 0)
    before, axis = one(x), walk.axis(x)
    if sizes is None or ("axes" in node.attributes and axis not in integers(node, "axes", ())):
        return False
    if len(sizes) != len(before) or sizes[0] != before[0] or axis != 0:
        raise Declined(f"{label(node)}: Resize along the axis of the windows")
    scales = np.array(sizes, np.float32) / np.array(before, np.float32)
    exact = np.array_equal(scales.astype(np.float64) * before, sizes)  # else a size may be rounded down to one less
    if exact and text(node, "keep_aspect_ratio_policy", "stretch") == "stretch":
        node.resize_inputs(3)
        node.replace_input_with(2, walk.store(scales, node, "scales"))
    elif before[0] == 1:
        node.replace_input_with(3, walk.shape_like(x, sizes[1:], node))
    else:
        raise Declined(f"{label(node)}: Resize of {before} to {sizes}, whose windows are merged with something")
    return True


def fix_concat(walk: Walk, node: ir.Node) -> bool:
    """What is the same for every window, as a class token (1, 1, C), is repeated for each."""
    batched = next(value for value in node.inputs if value is not None and walk.axis(value) is not None)
    if walk.axis(batched) != 0 or one(batched)[0] != 1 or integer(node, "axis", 0) in (0, -len(one(batched))):
        return False
    alike = [i for i, x in enumerate(node.inputs) if x is not None and walk.axis(x) is None and one(x)[0] == 1]
    for index in alike:
        x = _input(node, index)
        target = walk.shape_like(batched, one(x)[1:], node)
        expanded = walk.editor.node(node, "Expand", [x, target], one(x), dtype=x.dtype or ir.DataType.FLOAT)
        walk.probed[expanded] = walk.computed[target]
        node.replace_input_with(index, expanded)
    return bool(alike)


FIXES: dict[str, Callable[[Walk, ir.Node], bool]] = {
    "Reshape": fix_reshape,
    "Squeeze": fix_squeeze,
    "Unsqueeze": fix_unsqueeze,
    "Expand": fix_expand,
    "Resize": fix_resize,
    "Concat": fix_concat,
}


def _target(walk: Walk, node: ir.Node, target: list[int]) -> list[int]:
    """A shape like `target` that follows the number of windows; the same where it does already."""
    x, made = _input(node, 0), node.outputs[0]
    before, out, axis = one(x), one(made), walk.axis(x)
    assert axis is not None
    place, outer = _place(before, out, axis, walk.outer.get(x, 1))
    if place < 0:
        raise Declined(f"{label(node)}: Reshape of {before} to {out} puts the windows across two axes")
    walk.outer[made] = outer
    new = list(target)
    if axis < len(target) and target[axis] == 0:  # copies the windows to where others may be
        new[axis] = out[axis]
    if target[place] == -1:
        pass
    elif place == axis and before[axis] == out[axis]:
        new[place] = 0
    else:
        new = [size if value == -1 else value for value, size in zip(new, out, strict=True)]
        new[place] = -1
    return new


def _place(was: Shape, out: Shape, axis: int, outer: int) -> tuple[int, int]:
    """Where the windows are after a reshape of `was` to `out`, and how many times over; or (-1, 1).

    What is before them in memory stays before them.  Where axes could begin exactly with them, the same one as before
    is preferred.  They are never merged into the last axis, the channels, while they can go to what is before them.
    """
    before = math.prod(was[:axis]) * outer
    exact = [place for place in range(len(out)) if math.prod(out[:place]) == before]
    place = axis if axis in exact else exact[0] if exact else -1
    if place >= 0 and (place < len(out) - 1 or place == 0 or out[place] == 1 or out == was):
        return place, 1
    for flat in range(axis):
        if out[:flat] == was[:flat] and out[flat : flat + 1] == (math.prod(was[flat : axis + 1]),):
            return flat, before // math.prod(out[:flat])
    return place, 1


def _to_reshape(walk: Walk, node: ir.Node) -> bool:
    target = _target(walk, node, list(one(node.outputs[0])))
    node.op_type = "Reshape"
    node.attributes.clear()
    node.resize_inputs(2)
    node.replace_input_with(1, walk.store(target, node, "shape"))
    return True


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None, "ONNX requires it"
    return value


def _constant(node: ir.Node, index: int) -> list[int] | None:
    """The values of a constant shape, or None."""
    value = node.inputs[index]
    if value is None or value.const_value is None:
        return None
    return [int(v) for v in value.const_value.numpy().reshape(-1)]
