"""The kernels of an engine, as TensorRT tells them: in the log of a build, which needs no GPU, or by its inspector.

Both give a layer the same fields, the log as text and the inspector as JSON.  The log holds them where the profiling
verbosity is DETAILED, in one message that begins with ``Layers:`` and has a layer a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from engines.backends.tensorrt.products import multiplied
from engines.backends.tensorrt.profile import type_of
from engines.errors import DeployError
from engines.roofline.kernels import Kernel, Operand

HEADER = "Layers:"
_FIELD = re.compile(r", (LayerType|Inputs|Constants|Outputs|TacticName|StreamId|Metadata): ")
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([\d,]*)\](.*?)\}", re.S)
_LAYER_OF = re.compile(r"\[ONNX Layer: (.*?)\]")
_TENSORS = ("Inputs", "Constants", "Outputs")
# What waits for another stream, or is there for the compiler alone: no kernel is launched for it.
_NO_KERNEL = {"signal", "wait", "noop", "constant"}


def layers_in(listing: str) -> list[dict[str, Any]]:
    """The layers of the log's message `listing`, as the inspector would give them.  Raises DeployError."""
    return [_layer(line) for line in listing.splitlines() if ", LayerType: " in line]


def kernels_of(layers: Iterable[Mapping[str, Any]]) -> tuple[Kernel, ...]:
    """In their order.  Raises DeployError for a layer without an account of itself."""
    return tuple(_kernel(layer) for layer in layers if str(layer.get("LayerType", "")).lower() not in _NO_KERNEL)


def _layer(line: str) -> dict[str, Any]:
    head, *parts = _FIELD.split(line.strip())
    fields = dict(zip(parts[::2], parts[1::2], strict=True))
    layer: dict[str, Any] = {"Name": head.removeprefix("Name: ")}
    for key, text in fields.items():
        layer[key] = text if key not in _TENSORS else [
            {"Name": name, "Dimensions": [int(size) for size in sizes.split(",") if size], **_typed(rest)}
            for name, sizes, rest in _TENSOR.findall(text)
        ]  # fmt: skip
        if key in _TENSORS and len(layer[key]) != text.count("{ Name: "):
            raise _unread(layer["Name"])
    if not head.startswith("Name: ") or not {"Inputs", "Outputs"} <= fields.keys():
        raise _unread(head)
    return layer


def _typed(text: str) -> dict[str, str]:
    found = re.search(r", Datatype: (\w+)", text)
    return {"Datatype": found[1]} if found else {}


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    reads, writes = _operands(layer, "Inputs"), _operands(layer, "Outputs")
    constants = (*_operands(layer, "Constants"), *_weights(layer))
    product = multiplied(layer, reads, constants, writes)
    return Kernel(
        name, kind, reads=reads, constants=constants, writes=writes, macs=product.macs, computes_in=product.type,
        attention=product.attention, layers=tuple(_LAYER_OF.findall(str(layer.get("Metadata", "")))),
    )  # fmt: skip


def _operands(layer: Mapping[str, Any], key: str) -> tuple[Operand, ...]:
    """Each tensor once, however often a layer names it."""
    found = {}
    for tensor in layer.get(key, ()):
        shape, kind = tensor.get("Dimensions"), type_of(tensor)
        if not isinstance(shape, list) or kind == "?":
            raise _unread(str(layer.get("Name")))
        found[str(tensor.get("Name", ""))] = Operand(str(tensor.get("Name", "")), tuple(map(int, shape)), kind)
    return tuple(found.values())


def _weights(layer: Mapping[str, Any]) -> tuple[Operand, ...]:
    """As the inspector counts them for the layers that TensorRT does not leave to its compiler."""
    held = ((key, layer.get(key)) for key in ("Weights", "Bias"))
    return tuple(
        Operand(key, (int(each["Count"]),), type_of(each))
        for key, each in held if isinstance(each, dict) and each.get("Count")
    )  # fmt: skip


def _unread(name: str) -> DeployError:
    return DeployError(f"plan: TensorRT's account of layer {name[:100]} cannot be read; report this")
