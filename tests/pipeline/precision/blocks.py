"""Blocks of the networks that are compiled, as small graphs: what 8 bits cost depends on what stands around a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from pipeline.graph.onnx_graph import OnnxGraph
from tests.pipeline.precision.lowering import graph_of

WIDTH, HIDDEN, SIDE, CLASSES = 64, 256, 64, 5  # channels, of the hidden layer, patches a side, classes
TOKENS = SIDE * SIDE


class _Block:
    """Nodes from `image` on.  Each method returns the name of what it makes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def weight(self, *shape: int) -> str:
        value = self._rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
        return self.constant(value.astype(np.float32))

    def vector(self, size: int) -> str:
        return self.constant(self._rng.standard_normal(size).astype(np.float32) / 10)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, name: str = "", **attributes: Any) -> str:
        group = attributes.get("group", 1)
        ends = [kernel // 2] * 4 if attributes.get("strides") is None else [0] * 4
        weight, bias = self.weight(outputs, inputs // group, kernel, kernel), self.vector(outputs)
        return self.op("Conv", x, weight, bias, name=name, kernel_shape=[kernel] * 2, pads=ends, **attributes)

    def linear(self, x: str, inputs: int, outputs: int, name: str) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(inputs, outputs), name=name), self.vector(outputs))

    def norm(self, x: str) -> str:
        ones, zeros = self.constant(np.ones(WIDTH, np.float32)), self.vector(WIDTH)
        return self.op("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-6)

    def gelu(self, x: str) -> str:
        half, root = self.constant(np.float32(0.5)), self.constant(np.float32(2**0.5))
        erf = self.op("Erf", self.op("Div", x, root))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.constant(np.float32(1)))), half)

    def tokens(self, x: str, width: int = WIDTH) -> str:
        flat = self.op("Reshape", x, self.constant(np.array([1, width, TOKENS])))
        return self.op("Transpose", flat, perm=[0, 2, 1])

    def map(self, x: str, width: int = WIDTH) -> str:
        turned = self.op("Transpose", x, perm=[0, 2, 1])
        return self.op("Reshape", turned, self.constant(np.array([1, width, SIDE, SIDE])))

    def heads(self, x: str, name: str, perm: tuple[int, ...] = (0, 2, 1, 3), heads: int = 2) -> str:
        split = self.op("Reshape", self.linear(x, WIDTH, WIDTH, name),
                        self.constant(np.array([1, TOKENS, heads, WIDTH // heads])))  # fmt: skip
        return self.op("Transpose", split, perm=perm)

    def graph(self, x: str) -> OnnxGraph:
        """With a classifier behind the map `x`."""
        self.op("Conv", x, self.weight(CLASSES, WIDTH, 1, 1), name="logits", kernel_shape=[1, 1])
        side = 4 * SIDE
        return graph_of(self.nodes, self.constants, (1, 3, side, side), (1, CLASSES, SIDE, SIDE))


def _patches(block: _Block) -> str:
    return block.conv("image", 3, WIDTH, 4, "patches", strides=[4, 4])


def vit_block() -> OnnxGraph:
    """One block of a ViT: attention of two heads, then Linear, GELU, Linear, both with residual connections."""
    block = _Block()
    x = block.tokens(_patches(block))
    y = block.norm(x)
    q, k, v = block.heads(y, "q"), block.heads(y, "k", (0, 2, 3, 1)), block.heads(y, "v")
    scores = block.op("Mul", block.op("MatMul", q, k), block.constant(np.float32(0.18)))
    mixed = block.op("MatMul", block.op("Softmax", scores, axis=-1), v)
    joined = block.op("Reshape", block.op("Transpose", mixed, perm=[0, 2, 1, 3]),
                      block.constant(np.array([1, TOKENS, WIDTH])))  # fmt: skip
    x = block.op("Add", x, block.linear(joined, WIDTH, WIDTH, "proj"))
    hidden = block.gelu(block.linear(block.norm(x), WIDTH, HIDDEN, "fc1"))
    x = block.op("Add", x, block.linear(hidden, HIDDEN, WIDTH, "fc2"))
    return block.graph(block.map(x))


def mix_ffn() -> OnnxGraph:
    """SegFormer's feed-forward on the map: 1x1, depthwise 3x3, GELU, 1x1."""
    block = _Block()
    x = _patches(block)
    y = block.map(block.norm(block.tokens(x)))
    hidden = block.conv(y, WIDTH, HIDDEN, name="fc1")
    hidden = block.gelu(block.conv(hidden, HIDDEN, HIDDEN, 3, name="depthwise", group=HIDDEN))
    return block.graph(block.op("Add", x, block.conv(hidden, HIDDEN, WIDTH, name="fc2")))


def up_head() -> OnnxGraph:
    """Two steps of SETR's PUP decoder: 3x3, ReLU, bilinear x2, 3x3, ReLU, at the end back to the map's size."""
    block = _Block()
    x = block.op("Relu", block.conv(_patches(block), WIDTH, WIDTH, 3, name="first"))
    sizes = [1, WIDTH, 2 * SIDE, 2 * SIDE]
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    x = block.op("Resize", x, "", "", block.constant(np.array(sizes)), **attributes)
    x = block.op("Relu", block.conv(x, WIDTH, WIDTH, 3, name="second"))
    return block.graph(block.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]))
