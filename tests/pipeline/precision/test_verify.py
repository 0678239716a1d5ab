"""Which tensor is named where a lowered graph diverges."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from pipeline.graph.onnx_graph import OnnxGraph, from_model
from pipeline.precision.verify import first_divergence


def masked(factor: float) -> OnnxGraph:
    """softmax(where(x > 0, -inf, x)) * factor, as attention closes what a mask leaves out."""
    nodes = [
        helper.make_node("Greater", ["image", "zero"], ["shut"]),
        helper.make_node("Where", ["shut", "endless", "image"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=3),
        helper.make_node("Mul", ["weights", "factor"], ["logits"]),
    ]
    constants = {"zero": 0.0, "endless": -np.inf, "factor": factor}
    graph = helper.make_graph(
        nodes, "masked", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 4, 8])],
        [numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return from_model(ir.from_proto(model), ())


def test_masks_that_are_infinite_in_both_are_no_divergence() -> None:
    window = np.random.default_rng(0).normal(size=(1, 3, 4, 8)).astype(np.float32)
    found = first_divergence(masked(1.0), masked(2.0), window)
    assert found is not None
    assert (found.tensor, found.op, found.error) == ("logits", "Mul", 1.0)
