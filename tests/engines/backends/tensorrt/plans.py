"""A graph with one of each thing that multiplies, small enough to count by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import save
from tests.pipeline.precision.lowering import graph_of

RECORDED = Path(__file__).parent / "listings" / "one_of_each.txt"  # by tensorrt_rtx 1.7.1.116, of `one_of_each`
# Multiply-adds by the node's name.  The compiler pads channels: of the image to 4, of the last map to 8.
MACS = {
    "patches": 32 * 16 * 16 * 4 * 4 * 4,  # 3 -> 32 channels, 4x4 at stride 4, of 64x64 pixels
    "depthwise": 32 * 16 * 16 * 3 * 3,
    "attend": 2 * 256 * 256 * (16 + 16),  # two heads of 16 channels, 256 tokens
    "product": 256 * 32 * 64,
    "up": 64 * 16 * 16 * 8 * 2 * 2,  # 64 -> 5 channels, 2x2 at stride 2
}


def node(op: str, inputs: list[str], output: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=name or output, **attributes)


def weights(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / 8).astype(dtype)


def one_of_each() -> OnnxGraph:
    """(1, 3, 64, 64) -> (1, 5, 32, 32) in fp16."""
    half = np.float16
    nodes = [
        node("Cast", ["image"], "i", to=TensorProto.FLOAT16),
        node("Conv", ["i", "pw"], "p", "patches", strides=[4, 4]),
        node("Conv", ["p", "dw"], "d", "depthwise", pads=[1, 1, 1, 1], group=32),
        node("Reshape", ["d", "heads"], "h"), node("Transpose", ["h"], "q", perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "h"], "s", "scores"), node("Softmax", ["s"], "sm", axis=-1),
        node("MatMul", ["sm", "q"], "o", "attend"),
        node("Transpose", ["o"], "t", perm=[0, 2, 1, 3]), node("Reshape", ["t", "tokens"], "f"),
        node("MatMul", ["f", "mw"], "m", "product"), node("Add", ["m", "mb"], "a", "bias"),
        node("Transpose", ["a"], "at", perm=[0, 2, 1]), node("Reshape", ["at", "map"], "r"),
        node("ConvTranspose", ["r", "uw"], "u", "up", strides=[2, 2]),
        node("Cast", ["u"], "logits", to=TensorProto.FLOAT),
    ]  # fmt: skip
    constants = {
        "pw": weights(32, 3, 4, 4, dtype=half), "dw": weights(32, 1, 3, 3, dtype=half),
        "heads": np.array([1, 2, 16, 256]), "tokens": np.array([1, 256, 32]), "map": np.array([1, 64, 16, 16]),
        "mw": weights(32, 64, dtype=half), "mb": weights(64, dtype=half), "uw": weights(64, 5, 2, 2, dtype=half),
    }  # fmt: skip
    return graph_of(nodes, constants, (1, 3, 64, 64), (1, 5, 32, 32))


def saved(graph: OnnxGraph, path: Path) -> Path:
    save(graph.model, path)
    return path
