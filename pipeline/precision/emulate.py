"""Run a lowered graph with every tensor really rounded to its type, on a CPU that has no such arithmetic.

ONNX Runtime's CPU provider cannot be asked to run a typed FP16 graph for this: where it has no half kernel it computes
in float32 and drops the casts between neighbouring nodes even with all optimisations off (300 * 300 / 300 comes out as
300, not as infinity).  OpenVINO computes such graphs in fp32 or bf16 as well.  So the typed graph is rewritten into a
float32 one, with a Cast to the type and back after every tensor of that type; explicit pairs are kept and do round.
Inside a node everything is float32, as in the accumulators of the hardware that the graph is meant for.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.view import attribute, fresh, names_of, view
from pipeline.precision.types import FLOATS

_HALVES = {FLOATS["fp16"].onnx_type, FLOATS["bf16"].onnx_type}


def emulate(graph: OnnxGraph) -> OnnxGraph:
    """A float32 graph with the tensor names of `graph` and the values that its types allow."""
    shown = view(graph.model)
    taken = names_of(graph.model)
    nodes: list[onnx.NodeProto] = []
    for node in shown.nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.op_type == "Cast" and attribute(node, "to") in _HALVES:
            next(a for a in copy.attribute if a.name == "to").i = TensorProto.FLOAT
        nodes.append(copy)
        for index, name in enumerate(node.output):
            kind = shown.types.get(name)
            if name and kind in _HALVES:
                raw, half = fresh(taken, f"{name}__exact"), fresh(taken, f"{name}__half")
                copy.output[index] = raw  # an overflow becomes infinity here: ONNX saturates float8 only
                nodes.append(helper.make_node("Cast", [raw], [half], to=kind))
                nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    for initializer in model.graph.initializer:
        if initializer.data_type in _HALVES:
            value = numpy_helper.to_array(initializer).astype("float32")
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    return graph.then(model, "every tensor rounded to its type")
