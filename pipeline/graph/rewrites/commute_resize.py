"""``Conv1x1(Resize(x)) -> Resize(Conv1x1(x))``: convolve before upsampling, on fewer pixels.

A 1x1 convolution mixes channels, an interpolation mixes pixels; both are linear, so they commute.  The bias survives
because the weights of an interpolation (nearest, linear, cubic) sum to one at every output pixel, also at the borders,
where the outermost pixels are repeated.  Exact in real arithmetic.

Conditions: only height and width are resized, and upwards; nobody else reads the upsampled map; it has no more channels
after than before; sizes, where they are given, are constants; the coordinates are not those of ``tf_crop_and_resize``,
whose outside is a constant.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Conv, Editor, Outcome, conv, only_producer, shape, text, unlowered

NAME = "1x1 convolution before the upsampling"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "commute_resize"), 0, []
    for node in list(model.graph):
        pointwise = conv(node)
        resize = node.inputs[0].producer() if pointwise is not None and node.inputs[0] is not None else None
        if pointwise is None or resize is None or resize.op_type != "Resize":
            continue
        reason = _reason(pointwise, resize)
        if reason:
            declined.append(f"{node.name}: {reason}")
            continue
        _commute(editor, pointwise, resize)
        applied += 1
    return Outcome(applied, tuple(declined))


def _reason(pointwise: Conv, resize: ir.Node) -> str | None:
    before, after = shape(resize.inputs[0]), shape(resize.outputs[0])
    kernel = "x".join(str(side) for side in pointwise.stored.shape[2:])
    if not pointwise.is_pointwise:
        return f"a {kernel} convolution or one with groups, strides or padding sees neighbours of the upsampled map"
    if before is None or after is None or len(before) != 4 or before[:2] != after[:2]:
        return f"resizes {before} to {after}, expected a change of height and width only"
    if before[2] * before[3] >= after[2] * after[3]:
        return f"resizes {before[2:]} to {after[2:]}, expected an upsampling"
    if text(resize, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return "tf_crop_and_resize fills the outside with a constant, so its weights do not sum to one"
    if text(resize, "keep_aspect_ratio_policy", "stretch") != "stretch" or "axes" in resize.attributes:
        return "its output size is not given for all four axes"
    if len(resize.inputs) > 3 and resize.inputs[3] is not None and unlowered(resize.inputs[3]) is None:
        return "its output size, which names the channels, is computed at run time"
    if only_producer(resize.outputs[0]) is None:
        return "others read the upsampled map too"
    outputs, inputs = pointwise.stored.shape[:2]
    if outputs > inputs:
        return f"{outputs} channels would be upsampled instead of {inputs}"
    return None


def _commute(editor: Editor, pointwise: Conv, resize: ir.Node) -> None:
    node, x = pointwise.node, resize.inputs[0]
    assert x is not None
    small = editor.pointwise(node, x, pointwise.weight[:, :, 0, 0], pointwise.bias if pointwise.has_bias else None)
    out_shape = shape(node.outputs[0]) or ()
    inputs = [small, *resize.inputs[1:]]
    if len(inputs) > 3 and unlowered(inputs[3]) is not None:  # sizes name the channels, which are others now
        inputs[3] = editor.initializer(np.array(out_shape, np.int64), f"{resize.name}/commute_resize/sizes")
    attributes = resize.attributes.values()
    editor.replace(node.outputs[0], editor.node(node, "Resize", inputs, out_shape, attributes))
