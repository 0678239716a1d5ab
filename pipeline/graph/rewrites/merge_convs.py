"""``Conv1x1(Conv(x)) -> Conv(x)``: two convolutions with nothing between them are one.

With weights A (C_1, C_0, kh, kw), a and B (C_2, C_1, 1, 1), b the merged convolution has weight B A and bias B a + b,
computed in float64 and rounded once.  Exact in real arithmetic, whatever the stride or padding of the first.

Conditions: the second is 1x1, the first has one group, nobody else reads what lies between, and the merged one costs no
more multiply-adds than the two did.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Conv, Editor, Outcome, conv, integer, only_producer, shape

NAME = "two convolutions in a row -> one"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "merge_convs"), 0, []
    for node in list(model.graph):  # in order: a merged one is met again as the first of the next pair
        second = conv(node)
        first = conv(node.inputs[0].producer()) if second is not None and node.inputs[0] is not None else None
        if second is None or first is None:
            continue
        reason = _reason(first, second)
        if reason:
            declined.append(f"{node.name}: {reason}")
            continue
        _merge(editor, first, second)
        applied += 1
    return Outcome(applied, tuple(declined))


def _reason(first: Conv, second: Conv) -> str | None:
    if not second.is_pointwise:
        return "the second convolution is not 1x1"
    if only_producer(first.node.outputs[0]) is None:
        return "others read the first convolution too"
    if integer(first.node, "group", 1) != 1:
        return "the first convolution has groups"
    middle, inputs, height, width = first.stored.shape
    outputs, area = second.stored.shape[0], height * width
    if outputs * inputs * area > middle * inputs * area + outputs * middle:
        return f"{inputs} -> {middle} -> {outputs} channels cost less in two steps"
    return None


def _merge(editor: Editor, first: Conv, second: Conv) -> None:
    node, mix = second.node, second.weight[:, :, 0, 0]
    weight = np.tensordot(mix, first.weight, axes=(1, 0)).astype(np.float32)
    has_bias = first.has_bias or second.has_bias
    inputs = [first.node.inputs[0], editor.initializer(weight, f"{node.name}/merge_convs/weight")]
    if has_bias:
        bias = (mix @ first.bias + second.bias).astype(np.float32)
        inputs.append(editor.initializer(bias, f"{node.name}/merge_convs/bias"))
    attributes = first.node.attributes.values()
    editor.replace(node.outputs[0], editor.node(node, "Conv", inputs, shape(node.outputs[0]) or (), attributes))
