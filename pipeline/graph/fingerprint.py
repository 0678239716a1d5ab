"""A digest of what a graph computes, for artifacts that fit one graph only."""

from __future__ import annotations

import hashlib

import onnx
from onnx import numpy_helper


def graph_sha256(model: onnx.ModelProto) -> str:
    """sha256 over nodes, tensor names, attributes, weights and opsets.

    Not over what does not change the result: producer, doc strings, metadata, inferred shapes, node names, and how the
    weights are stored (raw or typed fields).
    """
    total = hashlib.sha256()

    def add(*parts: str | bytes) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            total.update(len(data).to_bytes(8, "little") + data)

    for opset in sorted(model.opset_import, key=lambda item: item.domain):
        add(opset.domain, str(opset.version))
    for value in (*model.graph.input, *model.graph.output):
        add(value.name, value.type.SerializeToString(deterministic=True))
    for node in model.graph.node:
        add(node.domain, node.op_type, str(len(node.input)), *node.input, str(len(node.output)), *node.output)
        for attribute in sorted(node.attribute, key=lambda item: item.name):
            add(attribute.SerializeToString(deterministic=True))
    for weight in sorted(model.graph.initializer, key=lambda item: item.name):
        add(weight.name, str(weight.data_type), str(list(weight.dims)), numpy_helper.to_array(weight).tobytes())
    return total.hexdigest()
