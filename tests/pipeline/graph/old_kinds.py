"""Generators of one or two operators as they are written at an old opset, with what differs between versions drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from tests.pipeline.graph.drawn import floats, ints, pick
from tests.pipeline.graph.test_rewrites import Net

PLACES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
BY_CHANNEL = (
    "Elu",
    "LeakyRelu",
    "Selu",
    "HardSigmoid",
    "Softplus",
    "Softsign",
    "LRN",
    "GlobalAveragePool",
    "GlobalMaxPool",
)


class Old(Net):
    """A `Net` at another opset."""

    def __init__(self, version: int, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        super().__init__(*shape)
        self.version, self.rng = version, rng

    def several(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        first = self.add(op, *inputs, **attributes)
        names = [first, *(f"{first}_{i}" for i in range(1, outputs))]
        self.nodes[-1].output.extend(names[1:])
        return names

    def model(self, out: str) -> ir.Model:
        """`out` is read once more, so that it is a tensor inside."""
        self.add("Identity", out)
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes, "old", [helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)], self.constants,
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.version)], ir_version=8)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def upsample(net: Old) -> str:
    scales, mode = (
        [1.0, 1.0, float(pick(net, 1, 2, 3, 1.5)), float(pick(net, 1, 2, 1.25, 2.5))],
        pick(net, "nearest", "linear"),
    )
    if net.version < 9:
        return net.add("Upsample", "image", scales=scales, mode=mode)
    if net.version == 9:
        return net.add("Upsample", "image", net.constant(floats(*scales)), mode=mode)
    if net.version == 10:
        scales[2:] = pick(net, (2, 1.5), (0.5, 0.75), (1, 3), (0.5, 1))
        return net.add("Resize", "image", net.constant(floats(*scales)), mode=mode)
    attributes = {"mode": mode, "coordinate_transformation_mode": pick(net, *PLACES)}
    if mode == "nearest":
        attributes["nearest_mode"] = pick(net, "round_prefer_floor", "floor", "ceil", "round_prefer_ceil")
    none, (_, channels, height, width) = net.constant(floats()), net.shape
    if pick(net, 0, 1):
        return net.add("Resize", "image", none, net.constant(floats(*scales)), **attributes)
    return net.add("Resize", "image", none, none, net.constant(ints(1, channels, height * 2, width + 1)), **attributes)


def dropout(net: Old) -> str:
    ratio = {"ratio": 0.4} if net.version < 12 and pick(net, 0, 1) else {}
    return net.several("Dropout", "image", outputs=pick(net, 1, 2), **ratio)[0]


def clip(net: Old) -> str:
    if net.version < 11:
        low, high = pick(net, {"min": -0.5}, {"min": 0.0}, {}), pick(net, {"max": 0.5}, {})
        return net.add("Clip", "image", **low, **high)
    limits = [pick(net, "", net.constant(np.float32(value))) for value in (-0.5, 0.5)]
    return net.add("Clip", "image", *limits)


def softmax(net: Old) -> str:
    axes = (0, 1, 2, 3) if net.version < 11 else (0, 1, 2, 3, -1, -2, -3)
    return net.add(pick(net, "Softmax", "LogSoftmax", "Hardmax"), "image", **pick(net, {"axis": pick(net, *axes)}, {}))


def batch_norm(net: Old) -> str:
    vectors = [net.weight(net.shape[1]) for _ in range(3)] + [
        net.constant(net.rng.random(net.shape[1]).astype(np.float32) + 0.1)
    ]
    spatial = pick(net, {}, {"spatial": 1}) if net.version < 9 else {}
    return net.add("BatchNormalization", "image", *vectors, **pick(net, {"epsilon": 1e-3}, {}), **spatial)


def pad(net: Old) -> str:
    mode = pick(net, "constant", "reflect", "edge")
    pads = [
        0,
        0,
        pick(net, 0, 1, 2),
        pick(net, 0, 1),
        0,
        0,
        pick(net, 0, 1),
        pick(net, 0, 2, -1 if mode == "constant" else 1),
    ]
    value = mode == "constant" and pick(net, True, False)
    if net.version < 11:
        return net.add("Pad", "image", pads=pads, mode=mode, **({"value": 1.5} if value else {}))
    return net.add(
        "Pad", "image", net.constant(ints(*pads)), *([net.constant(np.float32(1.5))] if value else []), mode=mode
    )


def slices(net: Old) -> str:
    height, width = net.shape[2:]
    starts, ends = [pick(net, 0, 1, -2), 0], [pick(net, height, 100, -1), pick(net, width, 2)]
    if net.version < 10:
        axes = {"axes": [2, 3]} if pick(net, 0, 1) else {}
        before = [] if axes else [0, 0]
        return net.add("Slice", "image", starts=[*before, *starts], ends=[*([9, 9] if before else []), *ends], **axes)
    steps = [net.constant(ints(1, 2))] if pick(net, 0, 1) else []
    return net.add(
        "Slice", "image", *(net.constant(ints(*v)) for v in (starts, ends, pick(net, (2, 3), (-2, -1)))), *steps
    )


def squeeze(net: Old) -> str:
    """Unsqueeze, and back again."""
    axis = pick(net, 0, 1, 2, 4) if net.version < 11 else pick(net, 0, 1, 2, 4, -1, -2)
    if net.version < 13:
        return net.add("Squeeze", net.add("Unsqueeze", "image", axes=[axis]), axes=[axis])
    return net.add("Squeeze", net.add("Unsqueeze", "image", net.constant(ints(axis))), net.constant(ints(axis)))


def reduce(net: Old) -> str:
    op = pick(net, "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceLogSumExp")
    axes = pick(net, [2, 3], [1], [3], None) if net.version < 11 else pick(net, [2, 3], [1], [-1], [-3], None)
    if axes is None:
        return net.add("Add", "image", net.add(op, "image"))
    by_input = op == "ReduceSum" and net.version >= 13
    reduced = net.add(op, "image", net.constant(ints(*axes))) if by_input else net.add(op, "image", axes=axes)
    return net.add("Add", "image", reduced)


def split(net: Old) -> str:
    parts = [1, net.shape[1] - 1]
    if net.version < 13:
        axis = pick(net, 1, -3) if net.version >= 11 else 1
        names = net.several("Split", "image", outputs=2, axis=axis, split=parts)
    else:
        names = net.several("Split", "image", net.constant(ints(*parts)), outputs=2, axis=pick(net, 1, -3))
    return net.add("Concat", *names[::-1], axis=1)


def pool(net: Old) -> str:
    attributes: dict[str, Any] = {"kernel_shape": [pick(net, 2, 3)] * 2, "strides": [pick(net, 1, 2)] * 2}
    attributes |= pick(net, {"pads": [1, 0, 1, 1]}, {"auto_pad": pick(net, "SAME_UPPER", "SAME_LOWER", "VALID")}, {})
    if net.version >= 10 and pick(net, 0, 1):
        attributes["ceil_mode"] = 1
    op, inside = pick(net, ("MaxPool", {}), ("AveragePool", {"count_include_pad": 1}), ("AveragePool", {}))
    return net.add(op, "image", **attributes, **inside)


def gemm(net: Old) -> str:
    _, channels, height, width = net.shape
    rows, transposed = channels * height, pick(net, 0, 1)
    weight = net.weight(5, width) if transposed else net.weight(width, 5)
    bias = [net.weight(*pick(net, (5,), (1, 5), (1,), (rows, 1)))] if net.version < 11 or pick(net, 0, 1) else []
    factors = pick(net, {"alpha": 0.5, "beta": 2.0}, {})
    made = net.add("Gemm", net.add("Flatten", "image", axis=3), weight, *bias, transB=transposed, **factors)
    return net.add("Reshape", made, net.constant(ints(1, channels, height, 5)))


def by_channel(net: Old) -> str:
    op, channels = (
        pick(net, *BY_CHANNEL, "PRelu", "Sum", "Max", "Instance", "Space", "Cast", "TopK", "ArgMax"),
        net.shape[1],
    )
    if op == "PRelu":
        return net.add(op, "image", net.weight(*pick(net, (channels, 1, 1), (1,), (1, channels, 1, 1))))
    if op in ("Sum", "Max"):
        other = net.add("Mul", "image", net.weight(1))
        return net.add(op, other, net.weight(channels, 1, 1) if net.version >= 8 else other, "image")
    if op == "Instance":
        return net.add("InstanceNormalization", "image", net.weight(channels), net.weight(channels), epsilon=1e-3)
    if op == "Space":
        four = net.add("Concat", *["image"] * 4, axis=1)
        return net.add(
            "DepthToSpace", four, blocksize=2, **(pick(net, {"mode": "CRD"}, {}) if net.version >= 11 else {})
        )
    if op == "Cast":
        whole = net.add("Cast", net.add("Mul", "image", net.constant(np.float32(3))), to=pick(net, 6, 7, 9, 10, 11))
        return net.add("Cast", whole, to=1)
    if op == "TopK":
        count = [net.constant(ints(2))] if net.version >= 10 else []
        return net.several("TopK", "image", *count, outputs=2, axis=1, **({} if count else {"k": 2}))[0]
    if op == "ArgMax":
        return net.add("Cast", net.add("ArgMax", "image", axis=1, keepdims=1), to=1)
    return net.add(op, "image", **({"size": 3} if op == "LRN" else {}))


def later(net: Old) -> str:
    """What came, or changed, after opset 13."""
    height, width = net.shape[2:]
    if net.version >= 17 and pick(net, 0, 1):
        return net.add("LayerNormalization", "image", net.weight(height, width), axis=2)
    if net.version >= 16 and pick(net, 0, 1):
        grid = net.constant((net.rng.random((1, 3, 2, 2)) * 2.4 - 1.2).astype(np.float32))
        mode = (
            pick(net, "bilinear", "nearest", "bicubic") if net.version < 20 else pick(net, "linear", "nearest", "cubic")
        )
        padding = pick(net, "zeros", "border")
        return net.add("GridSample", "image", grid, mode=mode, padding_mode=padding, align_corners=pick(net, 0, 1))
    mode, none = pick(net, "linear", "nearest", "cubic"), net.constant(floats())
    smooth = {"antialias": 1} if net.version >= 18 and mode != "nearest" else {}
    place = pick(net, "half_pixel", "asymmetric")
    sizes = net.constant(floats(1, 1, 1.5, 0.75))
    return net.add("Resize", "image", none, sizes, mode=mode, coordinate_transformation_mode=place, **smooth)


OLDEST = 7  # that ONNX Runtime runs
KINDS = {
    upsample: (OLDEST, 12), dropout: (OLDEST, 12), clip: (OLDEST, 12), softmax: (OLDEST, 12), batch_norm: (OLDEST, 14),
    pad: (OLDEST, 17), slices: (OLDEST, 12), squeeze: (OLDEST, 14), reduce: (OLDEST, 17), split: (OLDEST, 17),
    pool: (OLDEST, 18), gemm: (OLDEST, 12), by_channel: (OLDEST, 12), later: (13, 20),
}  # fmt: skip
