"""``Conv1x1(Relu(Conv1x1(x) + Resize(m_1) + ... + Resize(m_n)))`` at the end of a graph: the graph is cut before it.

SegFormer's decoder ends so once the exact rewrites have moved each projection to its stage's own resolution.  What lies
between, 256 or 768 channels at a quarter of the image, is written and read several times: a quarter of all that an
engine moves.  Cut off, the engine gives x and the small m_i, and `engines.tiling.tail` makes the logits of them in one
pass: the same sums of the same products, in float32.

Conditions: the graph's output is a 1x1 convolution of a ReLU of a sum; nobody else reads what lies between; the maps
are resized bilinearly with half-pixel centres, upwards, and at least one of them is; kernels are made for the sizes
(`TailShape.unfit`).  One map of full size that a 1x1 convolution makes of fewer channels is projected by the kernel: it
then reads the fewer.  The bias is that convolution's own; those of the other maps stay in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engines.tiling.tail import Tail, TailShape
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import Conv, conv, exact, integer, only_producer, shape, text

NAME = "the decoder's tail, a kernel of its own"


@dataclass(frozen=True)
class DecoderTail:
    """tail: the weights and sizes.  maps: names of the tensors that the graph then gives, the projected one first."""

    tail: Tail
    maps: tuple[str, ...]


def find(graph: OnnxGraph) -> DecoderTail | str:
    """The ending of an fp32 graph, or why it has none that can be cut."""
    classify = conv(graph.model.graph.outputs[0].producer())
    relu = None if classify is None else only_producer(classify.node.inputs[0])
    if classify is None or not classify.is_pointwise or relu is None or relu.op_type != "Relu":
        return "the graph does not end in a 1x1 convolution of a ReLU that nothing else reads"
    terms = _terms(relu.inputs[0])
    size = shape(relu.outputs[0])
    if size is None or len(size) != 4 or any(shape(term) != size for term in terms):
        return f"the ReLU is not of a sum of maps {size}"
    resized, full = [], []
    for term in terms:
        node = only_producer(term)
        if node is not None and node.op_type == "Resize":
            reason = _reason(node)
            if reason:
                return f"{node.name}: {reason}"
            assert node.inputs[0] is not None
            resized.append(node.inputs[0])
        else:
            full.append(term)
    if not resized:
        return "no map is upsampled, so there is nothing to gain"
    direct = next(filter(None, map(_projection, full)), None)
    maps = sorted(
        [*resized, *(term for term in full if direct is None or term is not direct.node.outputs[0])],
        key=lambda value: -np.prod(shape(value) or ()),
    )
    return _ending(classify, direct, maps, size)


def _ending(classify: Conv, direct: Conv | None, maps: list[ir.Value], size: tuple[int, ...]) -> DecoderTail | str:
    _, channels, height, width = size
    sizes = [shape(value) or () for value in maps]
    inputs = 0 if direct is None else direct.stored.shape[1]
    found = TailShape(
        height, width=width, inputs=inputs, channels=channels, classes=classify.stored.shape[0],
        maps=tuple((int(dims[2]), int(dims[3])) for dims in sizes),
    )  # fmt: skip
    reason = found.unfit()
    if reason:
        return reason
    project = np.zeros((channels, 0)) if direct is None else direct.weight[:, :, 0, 0]
    bias = np.zeros(channels) if direct is None else direct.bias
    weights = (project, bias, classify.weight[:, :, 0, 0], classify.bias)
    tail = Tail.of(found, *(array.astype(np.float32) for array in weights))
    first = [] if direct is None else [direct.node.inputs[0]]
    return DecoderTail(tail, tuple(str(value.name) for value in (*first, *maps) if value is not None))


def _terms(value: ir.Value | None) -> list[ir.Value]:
    """What is added up, where nothing else reads a sum."""
    node = only_producer(value)
    if node is None or node.op_type != "Add":
        return [] if value is None else [value]
    return [term for each in node.inputs for term in _terms(each)]


def _projection(term: ir.Value) -> Conv | None:
    """The 1x1 convolution that makes a map of fewer channels, if nothing else reads the map."""
    found = conv(only_producer(term))
    if found is None or not found.is_pointwise or found.stored.shape[1] >= found.stored.shape[0]:
        return None
    return found


def _reason(resize: ir.Node) -> str | None:
    before, after = shape(resize.inputs[0]), shape(resize.outputs[0])
    if before is None or after is None or len(before) != 4 or before[:2] != after[:2]:
        return f"resizes {before} to {after}, expected a change of height and width only"
    if before[2] > after[2] or before[3] > after[3]:
        return f"resizes {before[2:]} to {after[2:]}, expected an upsampling"
    mode, centres = text(resize, "mode", "nearest"), text(resize, "coordinate_transformation_mode", "half_pixel")
    if mode != "linear":
        return f"interpolates {mode}, expected linear"
    if centres not in ("half_pixel", "pytorch_half_pixel") or (centres != "half_pixel" and 1 in after[2:]):
        return f"samples at {centres}, expected half_pixel"
    if integer(resize, "antialias", 0) or "axes" in resize.attributes:
        return "with antialias or axes"
    if text(resize, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "its output size is not given for all four axes"
    if len(resize.inputs) > 3 and resize.inputs[3] is not None:
        return None
    scales = exact(resize.inputs[2]) if len(resize.inputs) > 2 else None
    if scales is None or scales.shape != (4,) or any(scales * before != after):
        return "its scales are not those of the sizes"
    return None
