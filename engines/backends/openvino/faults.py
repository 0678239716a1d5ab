"""What OpenVINO 2026.4 computes wrongly in int8, handed over in an equal form that it computes right.

Gets the openvino module as an argument: only the backend imports it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from engines.backends.openvino.graph import hold

_TILE_BYTES = 64  # of int8 that AMX takes from one row


def without_faults(ov: ModuleType, model: Any) -> None:
    for op in model.get_ordered_ops():
        if op.get_type_name() == "FakeQuantize":
            _hold_behind_concat(ov, op)
        elif op.get_type_name() == "Convolution":
            _make_width_odd(ov, op)
    model.validate_nodes_and_infer_types()


def _hold_behind_concat(ov: ModuleType, op: Any) -> None:
    """Keep a FakeQuantize behind the Concat that it reads.

    OpenVINO moves the FakeQuantize before the Concat, and a convolution that reads the uint8 Concat is then computed
    wrongly (by 10 to 16 % in a three-node graph).  What holds it ends up in the quantising kernel.
    """
    behind = op.input_value(0).get_node()
    if behind.get_type_name() == "Relu":
        behind = behind.input_value(0).get_node()
    if behind.get_type_name() == "Concat":
        hold(ov, op.input(0))


def _make_width_odd(ov: ModuleType, op: Any) -> None:
    """Add a column of zeros to an int8 kernel of even width over few channels, and a column of padding to its input.

    OpenVINO's AMX kernel (brgconv_avx512_amx_i8) answers such a convolution with numbers that have nothing to do with
    it: widths 4 and 8 over 16 to 56 channels, unpadded, as in the attention of SegFormer-B0.  Zeros change no sum.
    """
    weights = op.input_value(1)
    channels, width = weights.get_shape()[1], weights.get_shape()[3] if len(weights.get_shape()) == 4 else 1
    source = _int8_source(weights.get_node())
    if width < 4 or width % 2 or channels >= _TILE_BYTES or source is None:
        return
    values = source.get_source_output().get_node().get_data()
    wider = ov.opset13.constant(np.pad(values, ((0, 0), (0, 0), (0, 0), (0, 1))))
    source.replace_source_output(wider.output(0))
    below, right = op.get_attributes()["pads_end"]
    op.set_attribute("pads_end", [below, right + op.get_attributes()["dilations"][1]])


def _int8_source(node: Any) -> Any:
    """The input that reads the int8 constant, of zero point 0, that alone `node` dequantises; else None."""
    while len(node.output(0).get_target_inputs()) == 1 and node.get_input_size():
        if node.get_type_name() == "Subtract" and np.any(_constant(node.input_value(1).get_node())):
            return None
        source = node.input_value(0)
        if source.get_node().get_type_name() == "Constant":
            alone = len(source.get_target_inputs()) == 1
            return node.input(0) if alone and source.get_element_type().get_type_name() == "i8" else None
        node = source.get_node()
    return None


def _constant(node: Any) -> Any:
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node.get_data()
