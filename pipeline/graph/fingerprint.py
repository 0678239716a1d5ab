"""A digest of what a graph computes, for artifacts that fit one graph only."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir as ir


def graph_sha256(model: ir.Model) -> str:
    """sha256 over nodes, tensor names, attributes, weights and opsets.

    Not over what does not change the result: producer, doc strings, metadata, inferred shapes, node names, and how the
    weights are stored (raw or typed fields, inside the file or beside it).
    """
    total = hashlib.sha256()

    def add(*parts: str | bytes | memoryview) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            total.update(len(data).to_bytes(8, "little"))
            total.update(data)

    for domain, version in sorted(model.opset_imports.items()):
        add(domain, str(version))
    for value in (*model.graph.inputs, *model.graph.outputs):
        add(str(value.name), ir.to_proto(value).type.SerializeToString(deterministic=True))
    for node in model.graph:
        inputs, outputs = (
            [value.name or "" if value else "" for value in some] for some in (node.inputs, node.outputs)
        )
        add(node.domain, node.op_type, str(len(inputs)), *inputs, str(len(outputs)), *outputs)
        for _, attribute in sorted(node.attributes.items()):
            add(ir.to_proto(_as_raw(attribute)).SerializeToString(deterministic=True))
    for name, weight in sorted(model.graph.initializers.items()):
        tensor = weight.const_value
        assert tensor is not None
        add(name, str(tensor.dtype.value), str(list(tensor.shape.numpy())))
        add(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)  # no copy: it may be gigabytes
    return total.hexdigest()


def _as_raw(attribute: ir.Attr) -> ir.Attr:
    """Tensors as raw data."""
    if attribute.type != ir.AttributeType.TENSOR:
        return attribute
    old = attribute.as_tensor()
    tensor = ir.Tensor(old.numpy(), dtype=old.dtype, name=old.name, doc_string=old.doc_string)
    return ir.AttrTensor(attribute.name, tensor, attribute.doc_string)
