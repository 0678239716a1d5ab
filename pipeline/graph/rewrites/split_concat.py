"""``Conv1x1(Concat(x_1, ..., x_n)) -> Conv1x1_1(x_1) + ... + Conv1x1_n(x_n)``: one convolution for each branch.

The weight (M, C_1 + ... + C_n) is cut along its input channels: a sum over the concatenated channels is the sum of the
branches' sums, so this is exact; the bias goes to one of them.  By itself it saves nothing but the concatenated array
(SegFormer's decoder: 4 x 256 or 4 x 768 channels at a quarter of the image).  What it opens is each branch's own
resolution: the next rules move each part before its upsampling and into its projection.

Conditions: a 1x1 convolution, alone in reading the Concat; at least one branch is upsampled.
The smallest map takes the bias, and the sum goes from the smallest to the largest, so that a backend can add the rest
inside the last and largest convolution.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.surgery import Conv, Editor, Outcome, conv, integer, only_producer, shape

NAME = "split the 1x1 convolution of a concatenation"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "split_concat"), 0, []
    for node in list(model.graph):
        fuse = conv(node)
        concat = only_producer(node.inputs[0]) if fuse is not None else None
        if fuse is None or concat is None or concat.op_type != "Concat":
            continue
        reason = _reason(fuse, concat)
        if reason:
            declined.append(f"{node.name}: {reason}")
            continue
        _split(editor, fuse, concat)
        applied += 1
    return Outcome(applied, tuple(declined))


def _reason(fuse: Conv, concat: ir.Node) -> str | None:
    if not fuse.is_pointwise:
        return f"a {fuse.stored.shape[2]}x{fuse.stored.shape[3]} convolution or one with groups, strides or padding"
    if integer(concat, "axis", 1) not in (1, -3):
        return "the concatenation is not along the channels"
    if any(shape(value) is None for value in concat.inputs):
        return "a branch of unknown shape"
    if not any(_pixels(_origin(value)) < _pixels(value) for value in concat.inputs):
        return "no branch is upsampled, so there is nothing to gain"
    return None


def _origin(value: ir.Value | None) -> ir.Value | None:
    """What `value` was before its upsampling, if it was upsampled."""
    node = only_producer(value)
    return node.inputs[0] if node is not None and node.op_type == "Resize" else value


def _pixels(value: ir.Value | None) -> int:
    dims = shape(value)
    return 0 if dims is None else dims[-2] * dims[-1]


def _split(editor: Editor, fuse: Conv, concat: ir.Node) -> None:
    node, weight = fuse.node, fuse.weight[:, :, 0, 0]
    parts, start = [], 0
    for value in concat.inputs:
        assert value is not None
        stop = start + (shape(value) or ())[1]
        parts.append((value, weight[:, start:stop]))
        start = stop
    parts.sort(key=lambda part: _pixels(_origin(part[0])))
    total = None
    for value, part in parts:
        term = editor.pointwise(node, value, part, fuse.bias if total is None else None)
        total = term if total is None else editor.node(node, "Add", [total, term], shape(term) or ())
    assert total is not None
    editor.replace(node.outputs[0], total)
