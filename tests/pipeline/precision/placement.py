"""Where Q and DQ may stand, by NVIDIA's rules for explicit quantisation; a checker that knows nothing of our passes.

The rules are those of TensorRT's guide ("Working with Quantized Types") and of Model-Optimizer's INT8 mode:
symmetric; one scale for an activation, one per output channel for a weight; biases, norms, activations, sums and
products of two activations stay in floating point; no pair between a layer and its bias or activation function; values
that only move keep their scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

LAYERS = ("Conv", "MatMul", "Gemm")
REORDERS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast")


class Placement:
    """Reads one graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def maker(self, name: str, *ops: str) -> onnx.NodeProto | None:
        node = self.makers.get(name)
        return node if node is not None and node.op_type in ops else None

    def quantised(self) -> dict[str, str]:
        """By the output of each Conv, MatMul and Gemm: ``int8`` or ``float``."""
        layers = [node for node in self.graph.node if node.op_type in LAYERS]
        pairs = [any(self.maker(name, "DequantizeLinear") for name in node.input[:2]) for node in layers]
        return {node.output[0]: "int8" if pair else "float" for node, pair in zip(layers, pairs, strict=True)}

    def violations(self) -> Iterator[str]:
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear":
                yield from self._quantise(node)
            elif node.op_type == "DequantizeLinear":
                yield from self._dequantise(node)
            elif node.op_type in LAYERS:
                yield from self._layer(node)
            else:
                yield from (f"{node.op_type} {node.output[0]} reads a dequantised tensor"
                            for name in node.input if self.maker(name, "DequantizeLinear"))  # fmt: skip
        yield from self._moved()
        for value in self.graph.output:
            if self.maker(value.name, "DequantizeLinear", "QuantizeLinear"):
                yield f"the output {value.name} is quantised"

    def _quantise(self, node: onnx.NodeProto) -> Iterator[str]:
        name = node.output[0]
        if node.input[0] in self.constants:
            yield f"{name}: a constant is quantised at run time"
        if self.maker(node.input[0], "DequantizeLinear"):
            yield f"{name}: quantised twice"
        if sum(reader.op_type == "QuantizeLinear" for reader in self.readers[node.input[0]]) > 1:
            yield f"{name}: {node.input[0]} has several pairs"
        if self.array(node.input[1]).size != 1:
            yield f"{name}: an activation has several scales"
        if [reader.op_type for reader in self.readers.get(name, [])] != ["DequantizeLinear"]:
            yield f"{name}: not read by one DequantizeLinear"
        source = self.maker(node.input[0], *LAYERS)
        if source is not None and any(self._finishes(reader) for reader in self.readers[node.input[0]]):
            yield f"{name}: stands between {source.op_type} {node.input[0]} and its bias or activation function"

    def _finishes(self, reader: onnx.NodeProto) -> bool:
        """Whether it is what a kernel does on its way out."""
        return reader.op_type in ("Relu", "Clip", "Sigmoid", "PRelu", "LeakyRelu", "BatchNormalization") or (
            reader.op_type == "Add" and any(name in self.constants for name in reader.input)
        )

    def _dequantise(self, node: onnx.NodeProto) -> Iterator[str]:
        name, scale = node.output[0], self.array(node.input[1])
        if len(node.input) < 3 or self.array(node.input[2]).dtype != np.int8 or self.array(node.input[2]).any():
            yield f"{name}: its zero point is not an int8 zero"
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            yield f"{name}: a scale that is not a positive number"
        source = self.maker(node.input[0], "QuantizeLinear")
        # The same number in the type that each side computes in.
        if source is not None and float(self.array(source.input[1])) != float(scale):
            yield f"{name}: another scale than its QuantizeLinear"
        if source is None and node.input[0] not in self.constants:
            yield f"{name}: dequantises what nothing quantised"

    def _layer(self, node: onnx.NodeProto) -> Iterator[str]:
        activation, weight = (self.maker(name, "DequantizeLinear") for name in node.input[:2])
        name = node.output[0]
        if len(node.input) > 2 and self.maker(node.input[2], "DequantizeLinear"):
            yield f"{name}: its bias is quantised"
        if (activation is None) != (weight is None):
            yield f"{name}: one of its two inputs is quantised"
        if weight is None:
            return
        if weight.input[0] not in self.constants:
            yield f"{name}: a product of two activations is quantised"
            return
        yield from self._weight(name, weight, _output_axis(node))

    def _weight(self, name: str, weight: onnx.NodeProto, wanted: int) -> Iterator[str]:
        stored, scale = self.array(weight.input[0]), self.array(weight.input[1])
        axis = next((helper.get_attribute_value(a) for a in weight.attribute if a.name == "axis"), 1) % stored.ndim
        if stored.dtype != np.int8:
            yield f"{name}: its weight is stored as {stored.dtype}"
        if axis != wanted % stored.ndim or scale.shape != (stored.shape[axis],):
            yield f"{name}: scales {scale.shape} along axis {axis} of {stored.shape}, expected one per output channel"
        peaks = np.abs(stored.astype(np.int32)).max(
            axis=tuple(i for i in range(stored.ndim) if i != wanted % stored.ndim)
        )
        # Where a half type is coarse, among its subnormals, the next smaller scale would clip the weight.
        smaller = np.nextafter(scale, np.zeros_like(scale)).astype(np.float64)
        coarse = peaks * scale.astype(np.float64) >= 126 * smaller
        if not (coarse | (peaks == 0)).all() or peaks.max() > 127:
            yield f"{name}: a channel whose largest weight is {peaks.min()} of 127 steps"

    def _moved(self) -> Iterator[str]:
        """Tensors that hold the same values in another order have the same scale."""
        scales: dict[str, Any] = {}
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear":
                root, scale = self._root(node.input[0]), float(self.array(node.input[1]).reshape(-1)[0])
                if scales.setdefault(root, scale) != scale:
                    yield f"{node.input[0]}: scale {scale:g}; the same values have {scales[root]:g} elsewhere"

    def _root(self, name: str) -> str:
        while (node := self.maker(name, *REORDERS)) is not None:
            name = node.input[0]
        return name


def _output_axis(node: onnx.NodeProto) -> int:
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed) else -1
