"""What the tests of the precision lowering share: small graphs, windows, measured ranges."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from calib.data.scenes import render
from engines.contract import Float32
from engines.proof.golden import windows_of
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.export import simplify
from pipeline.graph.onnx_graph import OnnxGraph, from_model, run_onnx


@cache
def exported(model: str, side: int) -> tuple[OnnxGraph, tuple[Float32, ...], Float32]:
    """(simplified graph, two windows of a rendered scene, their fp32 logits)."""
    source = load_source(model, (side, side), SourceOptions())
    graph = simplify(source.export()[0])
    tiling = Tiling(side, side, side, side)
    windows = tuple(windows_of(render(0, side, 2 * side).image, source.spec, tiling))
    return graph, windows, run_onnx(graph, list(windows))


def graph_of(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...], output: tuple[int, ...]
) -> OnnxGraph:
    """A graph image -> logits at opset 18."""
    body = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return from_model(ir.from_proto(model), ())


def untyped(graph: OnnxGraph) -> onnx.ModelProto:
    """Without what our passes say about the types of tensors inside."""
    proto = ir.to_proto(graph.model)
    del proto.graph.value_info[:]
    return proto


def types(graph: OnnxGraph) -> dict[str, int]:
    """Element type of every tensor by ONNX's own inference, constants included."""
    model = onnx.shape_inference.infer_shapes(untyped(graph), strict_mode=True, check_type=True)
    found = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    assert found == {v.name: v.dtype for node in graph.model.graph for v in node.outputs}  # as the passes say
    found |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    return found | {i.name: i.data_type for i in model.graph.initializer}
