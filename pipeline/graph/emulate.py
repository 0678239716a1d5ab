"""Run a lowered graph with every tensor really rounded to its type, on a CPU that has no such arithmetic.

ONNX Runtime's CPU provider cannot be asked to run a typed FP16 graph for this: where it has no half kernel it computes
in float32 and drops the casts between neighbouring nodes even with all optimisations off (300 * 300 / 300 comes out as
300, not as infinity).  OpenVINO computes such graphs in fp32 or bf16 as well.  So the typed graph is rewritten into a
float32 one, with a Cast to the type and back after every tensor of that type; explicit pairs are kept and do round.
Inside a node everything is float32, as in the accumulators of the hardware that the graph is meant for.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Editor, integer, set_type
from pipeline.graph.types import FLOATS

_HALVES = (FLOATS["fp16"].onnx_type, FLOATS["bf16"].onnx_type)
_FP32 = FLOATS["fp32"].onnx_type


def emulate(graph: OnnxGraph) -> OnnxGraph:
    """A float32 graph with the tensor names of `graph` and the values that its types allow."""
    model = graph.model.clone()
    editor = Editor(model)
    nodes = list(model.graph)
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        if node.op_type == "Cast" and integer(node, "to", 0) in _HALVES:
            node.attributes["to"] = ir.AttrInt64("to", _FP32)
        for value in node.outputs:
            if value.dtype in _HALVES:
                _round(editor, value, value.dtype, following)
    for value in model.graph.initializers.values():
        if value.dtype in _HALVES and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype("float32"), name=value.name)
            set_type(value, _FP32)
    return graph.then(model, "every tensor rounded to its type")


def _round(editor: Editor, value: ir.Value, kind: ir.DataType, following: ir.Node | None) -> None:
    """Let all that read `value` read it rounded to `kind`, under its name."""
    name, readers = str(value.name), value.uses()
    set_type(value, _FP32)

    def cast(source: ir.Value, to: ir.DataType, suffix: str) -> ir.Value:
        return editor.insert(
            following, "Cast", [source], name=f"{name}__{suffix}", shape=value.shape, dtype=to,
            attributes=[ir.AttrInt64("to", to)],
        )  # fmt: skip

    # An overflow becomes infinity here: ONNX saturates float8 only.
    rounded = cast(cast(value, kind, "half"), _FP32, "rounded")
    for reader, index in readers:
        reader.replace_input_with(index, rounded)
    value.name, rounded.name = editor.free(f"{name}__exact"), name
