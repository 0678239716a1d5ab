"""The type in which an engine is given its windows.

A lowered graph takes float32.  Where all that reads them wants halves, a GPU's gather may write these itself: it rounds
as the graph's Cast does, so that nothing changes but the bytes of one map as large as the window, read and written.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with

from engines.contract import Backend

HALF = ir.DataType.FLOAT16


def interface_for(backend: Backend, model: ir.Model) -> ir.Model:
    """`model`, or for a GPU that is given the graph a copy that takes halves, where that is what its input becomes."""
    if not backend.on_gpu or backend.from_program or not _becomes_half(model.graph.inputs[0]):
        return model
    model = model.clone()
    (image,) = model.graph.inputs
    for cast in [usage.node for usage in image.uses()]:
        replace_all_uses_with(cast.outputs[0], image)
        model.graph.remove(cast, safe=True)
    image.type = ir.TensorType(HALF)
    return model


def _becomes_half(image: ir.Value) -> bool:
    readers = [usage.node for usage in image.uses()]
    made = [reader.outputs[0] for reader in readers]
    return bool(readers) and all(
        reader.op_type == "Cast" and reader.attributes["to"].as_int() == HALF and not value.is_graph_output()
        for reader, value in zip(readers, made, strict=True)
    )
