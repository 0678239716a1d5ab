"""From a strongly typed graph to what OpenVINO's CPU plugin runs fast and still as written.

The plugin honours a graph typed in bfloat16 to the letter, but then finds neither its fused attention nor its INT8
rewrites, both of which it matches in float32 (2026.4: SegFormer-B0 1.7 times slower, Q/DQ with bfloat16 scales
refused).  So the graph is handed over in float32 with INFERENCE_PRECISION_HINT at its half type, and every node that
the graph types as float32 is marked with the runtime attribute that forbids the conversion.  Such attributes are
objects that only the IR reader makes, hence the detour over IR.

The attribute belongs to a node, and a node that the plugin puts in the place of another has none (2026.4.1).  With f16
the plugin types the graph early, once it has folded each Transpose into the MatMul that reads it: this fold alone is
done here instead.  With bf16 it chooses types last, layer by layer, after all its rewrites: Softmax and Interpolate of
newer opsets, a bias or a factor that goes into the weights, are put here into the form that is left alone; what is
decomposed (LogSoftmax, GroupNormalization, LayerNormalization of more than three dimensions) still loses the mark,
which `account.half_unasked` finds.

Gets the openvino module as an argument: only the backend imports it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from types import ModuleType
from typing import Any

import numpy as np

from engines.backends.openvino.faults import without_faults
from engines.backends.openvino.graph import HELD, hold, replace
from engines.guard.ledger import temporary_folder

HALVES = {"bf16": "bf16", "f16": "f16"}
_NOT_COMPUTED = {"Constant", "Parameter", "Result", "Convert", "ShapeOf"}
_SWALLOWED_BY = {  # by the weights or the bias of what they read
    "Add": ("MatMul",),
    "Multiply": ("MatMul", "Convolution", "GroupConvolution"),
    "Divide": ("MatMul", "Convolution", "GroupConvolution"),
}
_MODES_4 = ("nearest", "linear", "linear_onnx", "cubic")  # that Interpolate of opset 4 knows


def half_type(model: Any) -> str | None:
    """``bf16`` or ``f16`` when the graph computes in it somewhere, else None."""
    found = {_type(op) for op in model.get_ordered_ops() if op.get_type_name() not in _NOT_COMPUTED}
    return next((half for half in HALVES if half in found), None)


def computed_in(model: Any, kind: str) -> frozenset[str]:
    """Names of the nodes that compute in `kind`."""
    ops = (op for op in model.get_ordered_ops() if op.get_type_name() not in _NOT_COMPUTED)
    return frozenset(op.get_friendly_name() for op in ops if _type(op) == kind)


def with_marks(ov: ModuleType, model: Any, hint: str) -> Any:
    """`model` in float32, its float32 nodes marked to stay so under the precision hint `hint`."""
    islands = computed_in(model, "f32") if hint in HALVES else frozenset()
    _to_float32(ov, model)
    without_faults(ov, model)
    _fold_transposes_into_products(model)
    for op in model.get_ordered_ops() if hint == "bf16" else ():
        if op.get_friendly_name() in islands:
            _as_the_plugin_will_have_it(ov, op)
    model.validate_nodes_and_infer_types()
    with temporary_folder() as folder:
        xml, weights = folder / "model.xml", folder / "model.bin"
        ov.serialize(model, xml, weights)
        tree = ET.parse(xml)  # noqa: S314 - written by OpenVINO a moment ago
        for layer in tree.iterfind("layers/layer"):
            if layer.get("name", "").removesuffix(HELD) in islands and layer.get("type") not in _NOT_COMPUTED:
                _mark(layer)
        tree.write(xml)
        # Reading from memory: the weights must outlive the folder.
        return ov.Core().read_model(xml.read_bytes(), ov.Tensor(np.fromfile(weights, np.uint8)))


def _to_float32(ov: ModuleType, model: Any) -> None:
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind == "Constant" and _type(op) in HALVES:
            value = ov.opset13.constant(op.get_data(dtype=np.float32), name=op.get_friendly_name())
            replace(op.output(0), value.output(0))
        elif kind == "Convert" and _float(op.input(0).get_element_type()) and _float(op.output(0).get_element_type()):
            replace(op.output(0), op.input_value(0))
        elif kind == "Convert" and _type(op) in HALVES:
            op.set_destination_type(ov.Type.f32)
    model.validate_nodes_and_infer_types()


def _fold_transposes_into_products(model: Any) -> None:
    """Turn MatMul(Transpose(x), y) into MatMul(x, y, transpose_a), and the same for y.

    OpenVINO 2026.4 does it before it converts to the half type, and the MatMul that it makes for it is not marked.
    """
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul":
            continue
        for index, flag in enumerate(("transpose_a", "transpose_b")):
            behind = op.input_value(index).get_node()
            if _swaps_last_two(behind):
                op.set_attribute(flag, not op.get_attributes()[flag])
                op.input(index).replace_source_output(behind.input_value(0))
    model.validate_nodes_and_infer_types()


def _as_the_plugin_will_have_it(ov: ModuleType, op: Any) -> None:
    """Where OpenVINO 2026.4 replaces a node and does not mark the new one, make the new one here."""
    kind, version = op.get_type_name(), op.get_type_info().version_id
    if (kind, version) == ("Softmax", "opset8"):
        rank = len(op.get_output_shape(0))
        _rename(op, ov.opset1.softmax(op.input_value(0), op.get_attributes()["axis"] % rank))
    elif (kind, version) == ("Interpolate", "opset11") and op.get_attributes()["mode"] in _MODES_4:
        _rename(op, _interpolate_4(ov, op))
    for port in op.inputs():
        if port.get_source_output().get_node().get_type_name() in _SWALLOWED_BY.get(kind, ()):
            hold(ov, port)


def _interpolate_4(ov: ModuleType, op: Any) -> Any:
    """The same resize with separate inputs for sizes and scales, of which only one is read, and with axes."""
    rank = len(op.get_output_shape(0))
    by_scales = op.get_attributes()["shape_calculation_mode"] == "scales"
    given, unread = op.input_value(1), ov.opset13.constant(np.ones(rank, np.int64 if by_scales else np.float32))
    axes = op.input_value(2) if op.get_input_size() > 2 else ov.opset13.constant(np.arange(rank)).output(0)
    inputs = [unread.output(0), given] if by_scales else [given, unread.output(0)]
    factory = ov.utils.node_factory.NodeFactory("opset4")
    return factory.create("Interpolate", [op.input_value(0), *inputs, axes], op.get_attributes())


def _rename(old: Any, new: Any) -> None:
    new.set_friendly_name(old.get_friendly_name())
    replace(old.output(0), new.output(0))


def _swaps_last_two(op: Any) -> bool:
    if op.get_type_name() != "Transpose" or op.input_value(1).get_node().get_type_name() != "Constant":
        return False
    order = [int(axis) for axis in op.input_value(1).get_node().get_data()]
    *rest, last, before = range(len(order)) if len(order) > 1 else (0, 0)
    return order == [*rest, before, last]


def _mark(layer: ET.Element) -> None:
    info = layer.find("rt_info")
    if info is None:
        info = ET.Element("rt_info")
        layer.insert(1 if layer.find("data") is not None else 0, info)
    ET.SubElement(info, "attribute", name="precise", version="0")  # until 2026.1
    ET.SubElement(info, "attribute", name="DisablePrecisionConversion", version="0", value="f32:bf16,f16")


def _type(op: Any) -> str:
    return str(op.get_output_element_type(0).get_type_name()) if op.get_output_size() else ""


def _float(kind: Any) -> bool:
    return kind.get_type_name() in ("f32", *HALVES)
