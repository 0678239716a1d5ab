"""``Resize(x) -> x`` where nothing is resized: exporters leave one behind where a model resizes to the size it has.

Every output pixel then lies exactly on an input pixel, in each of the coordinate transformations, and takes its value.

Condition: the shape stays, and the coordinates are not those of ``tf_crop_and_resize``, which may still cut a part out.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.surgery import Editor, Outcome, shape, text

NAME = "resize to the same size"


def rewrite(model: ir.Model) -> Outcome:
    editor, applied, declined = Editor(model, "drop_resize"), 0, []
    for node in list(model.graph):
        x = node.inputs[0] if node.op_type == "Resize" else None
        if x is None or shape(x) is None or shape(x) != shape(node.outputs[0]):
            continue
        if text(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
            declined.append(f"{node.name}: tf_crop_and_resize cuts out a part even where the size stays")
        elif node.outputs[0].is_graph_output():
            declined.append(f"{node.name}: its output is the graph's, and keeps its name")
        else:
            editor.replace(node.outputs[0], x)
            applied += 1
    return Outcome(applied, tuple(declined))
