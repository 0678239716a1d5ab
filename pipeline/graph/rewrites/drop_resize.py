"""``Resize(x) -> x`` where nothing is resized: exporters leave one behind where a model resizes to the size it has.

At a scale of exactly one every output pixel lies on an input pixel, in each of the coordinate transformations but two,
and takes its value, whatever the interpolation.

Conditions: the shape stays; the scales are one, as they are where sizes are given, since a scale of 1.2 keeps a side of
4 and changes the values; the coordinates are not those of ``tf_crop_and_resize``, which may still cut a part out, or of
``tf_half_pixel_for_nn``, which are off by half a pixel.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pipeline.graph.surgery import Editor, Outcome, exact, shape, text

NAME = "resize to the same size"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "drop_resize"), 0, []
    for node in list(model.graph):
        x = node.inputs[0] if node.op_type == "Resize" else None
        if x is None or shape(x) is None or shape(x) != shape(node.outputs[0]):
            continue
        reason = _reason(node)
        if reason:
            declined.append(f"{node.name}: {reason}")
        elif node.outputs[0].is_graph_output():
            declined.append(f"{node.name}: its output is the graph's, and keeps its name")
        else:
            editor.replace(node.outputs[0], x)
            applied += 1
    return Outcome(applied, tuple(declined))


def _reason(node: ir.Node) -> str | None:
    mode = text(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize":
        return "tf_crop_and_resize cuts out a part even where the size stays"
    if mode == "tf_half_pixel_for_nn":
        return "tf_half_pixel_for_nn is off by half a pixel even where the size stays"
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        return None
    scales = exact(node.inputs[2]) if len(node.inputs) > 2 else exact(node.inputs[1])  # the second input until opset 10
    if scales is None:
        return "scales that are computed at run time"
    return (
        None if np.all(scales == 1) else f"scales of {', '.join(f'{scale:g}' for scale in sorted({*scales} - {1.0}))}"
    )
