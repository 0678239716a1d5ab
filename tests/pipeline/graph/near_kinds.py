"""Generators of near misses for the rewrites: each draws a subgraph in which one condition barely holds or fails.

Each returns a map of the network, and what a second reader reads too.
"""

from __future__ import annotations

import numpy as np

from engines.errors import DeployError
from tests.pipeline.graph.drawn import floats, ints, maybe_read, pick, sometimes
from tests.pipeline.graph.test_rewrites import Net

Drawn = tuple[str, list[str]]


def batch_inside(net: Net) -> Drawn:
    """The three channels become three maps, which are resized and convolved."""
    height, width = net.shape[2:]
    batch = pick(net, 1, 3)
    x, channels = net.add("Reshape", "image", net.constant(ints(batch, 3 // batch, height, width))), 3 // batch
    if channels == 1:
        x, channels = net.add("Concat", x, x, axis=1), 2
    if pick(net, 0, 1):
        up = net.resize(x, (batch, channels, 2 * height, width + 1))
    else:
        up = net.add("Resize", x, "", net.constant(floats(1, 1, 2, 1.5)), mode="linear")
    out = net.conv(up, channels, pick(net, 1, 2, channels), bias=pick(net, False, True))
    if batch > 1:
        out = net.add("ReduceMean", out, net.constant(ints(0)), keepdims=1)
    return out, maybe_read(net, up)


def sizes_at_run_time(net: Net) -> Drawn:
    """The number of channels, which the convolution changes, is read from the tensor."""
    height, width = net.shape[2:]
    channels = net.add("Slice", net.add("Shape", "image"), net.constant(ints(0)), net.constant(ints(2)))
    sizes = net.add("Concat", channels, net.constant(ints(2 * height, 2 * width)), axis=0)
    place = pick(net, "half_pixel", "asymmetric")
    if sometimes(net, 0.3):
        sizes = net.constant(ints(1, 3, 2 * height, 2 * width))
    up = net.add(
        "Resize", "image", "", "", sizes, mode=pick(net, "linear", "nearest"), coordinate_transformation_mode=place
    )
    return net.conv(up, 3, pick(net, 1, 2, 3), bias=pick(net, False, True)), maybe_read(net, up)


def unusual_resize(net: Net) -> Drawn:
    """Axes, aspect policies, antialiasing, a region of interest, a weight outside: often to the size it has."""
    place = pick(net, "half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")
    attributes = {"mode": pick(net, "linear", "nearest", "cubic"), "coordinate_transformation_mode": place}
    region = ""
    if place == "tf_crop_and_resize":
        region, attributes["extrapolation_value"] = net.constant(floats(0, 0, 0.1, 0, 1, 1, 0.9, 1)), 0.5
    if attributes["mode"] == "cubic":
        attributes |= pick(net, {"exclude_outside": 1}, {"cubic_coeff_a": -0.5}, {})
    if attributes["mode"] != "nearest" and not region and sometimes(net, 0.2):
        attributes["antialias"] = 1
    up = _resize(net, region, attributes)
    out = net.conv(up, 3, pick(net, 2, 3)) if pick(net, 0, 1) else net.add("Relu", up)
    return out, maybe_read(net, up)


def _resize(net: Net, region: str, attributes: dict[str, object]) -> str:
    height, width = net.shape[2:]
    same = pick(net, True, False)
    size = (height, width) if same else (pick(net, 2 * height, height + 1, height - 1), pick(net, width, 2 * width))
    kind = pick(net, "axes", "policy", "sizes", "scales")
    if kind == "axes" and not region:
        axes = pick(net, [2, 3], [3, 2], [-2, -1])
        if pick(net, 0, 1):
            return net.add(
                "Resize", "image", "", net.constant(floats(1, 1) if same else floats(2, 1.5)), axes=axes, **attributes
            )
        wanted = size[::-1] if axes == [3, 2] else size
        return net.add("Resize", "image", "", "", net.constant(ints(*wanted)), axes=axes, **attributes)
    if kind == "policy" and not region:
        policy = pick(net, "not_larger", "not_smaller")
        sizes = net.constant(ints(*size))
        return net.add("Resize", "image", "", "", sizes, axes=[2, 3], keep_aspect_ratio_policy=policy, **attributes)
    if kind == "sizes":
        return net.add("Resize", "image", region, "", net.constant(ints(1, 3, *size)), **attributes)
    scales = (1, 1) if same else (pick(net, 2, 1.1), pick(net, 1, 1.2))
    return net.add("Resize", "image", region, net.constant(floats(1, 1, *scales)), **attributes)


def concat_of_odd_parts(net: Net) -> Drawn:
    """A part that comes twice, a constant one, the image, padding by name, a second convolution that reads it."""
    height, width = net.shape[2:]
    size = (2 * height, 2 * width)
    first = net.resize(net.conv("image", 3, 2), (1, 2, *size))
    parts = [(first, 2)]
    for _ in range(pick(net, 0, 1, 2)):
        kind = pick(net, "same", "constant", "image")
        parts.append(
            (first, 2) if kind == "same" else
            (net.weight(1, 2, *size), 2) if kind == "constant" else (net.resize("image", (1, 3, *size)), 3)
        )  # fmt: skip
    order = net.rng.permutation(len(parts))
    cat = net.add("Concat", *(parts[i][0] for i in order), axis=pick(net, 1, -3))
    weight = net.weight(4, sum(width for _, width in parts), 1, 1)
    bias = [net.weight(4)] if pick(net, 0, 1) else []
    padding = {"auto_pad": pick(net, "VALID", "SAME_UPPER", "NOTSET")} if pick(net, 0, 1) else {}
    out = net.add("Conv", cat, weight, *bias, **padding)
    if pick(net, 0, 1):
        out = net.add("Conv", out, net.weight(4, 4, 1, 1))
    if sometimes(net, 0.25):
        out = net.add("Add", out, net.add("Conv", cat, weight))  # the same weight
    return out, maybe_read(net, cat)


def convolutions_with_attributes(net: Net) -> Drawn:
    """Dilation, padding by name, strides of one side; a weight that is computed; a copy between the two."""
    kernel = pick(net, 1, 3, 2) if min(net.shape[2:]) > 4 else 1
    attributes: dict[str, object] = {"dilations": [pick(net, 1, 2)] * 2}
    if kernel > 1 and pick(net, 0, 1):
        attributes = {"auto_pad": pick(net, "SAME_UPPER", "SAME_LOWER", "VALID")}
    if pick(net, 0, 1):
        attributes["strides"] = [1, 2]
    bias = [net.weight(6)] if pick(net, 0, 1) else []
    first = net.add("Conv", "image", net.weight(6, 3, kernel, kernel), *bias, **attributes)
    between = net.add("Identity", first) if sometimes(net, 0.2) else first
    weight = net.weight(4, 6, 1, 1)
    if sometimes(net, 0.2):
        weight = net.add("Mul", weight, net.constant(np.float32(2)))
    odd = pick(net, {}, {}, {"strides": [2, 1]}, {"pads": [0, 0, 0, 1]}, {"dilations": [2, 2]})
    out = net.add("Conv", between, weight, **odd)
    if sometimes(net, 0.3):
        out = net.add("Conv", out, net.weight(3, 4, 1, 1), net.weight(3))
    return out, maybe_read(net, first, between)


def scales_of_linears(net: Net) -> Drawn:
    """Numbers of several ranks, zero, a vector; a Gemm, a difference, a bias that adds an axis, a shared weight."""
    _, channels, height, width = net.shape
    tokens = net.add("Reshape", "image", net.constant(ints(1, channels, height * width)))
    rows, inner = channels, height * width
    if pick(net, 0, 1):
        tokens, rows, inner = net.add("Transpose", tokens, perm=[0, 2, 1]), inner, rows
    weight = net.weight(*pick(net, (inner, 4), (1, inner, 4)))
    if sometimes(net, 0.3):
        flat = net.add("Reshape", tokens, net.constant(ints(rows, inner)))
        linear = net.add("Reshape", net.add("Gemm", flat, net.weight(inner, 4)), net.constant(ints(1, rows, 4)))
    else:
        linear = net.add("MatMul", tokens, weight)
    if pick(net, 0, 1):
        bias = net.weight(*pick(net, (4,), (1,), (rows, 4), (1, rows, 4), (2, rows, 4), ()))
        linear = net.add("Add", *pick(net, (linear, bias), (bias, linear)))
    if sometimes(net, 0.2):
        linear = net.add("Sub", linear, net.weight(4))
    number = pick(
        net, np.float32(0.5), floats(0.25), np.full((1, 1, 1, 1), 3, np.float32), np.float32(0), floats(1, 2, 3, 4)
    )
    op, pair = pick(net, "Mul", "Mul", "Div"), [linear, net.constant(number)]
    if sometimes(net, 0.3):
        pair.reverse()
    if op == "Div" and not np.all(number):
        raise DeployError("drawn: a division by zero")
    scaled = net.add(op, *pair)
    if sometimes(net, 0.3):
        scaled = net.add("Add", scaled, net.add("MatMul", tokens, weight))
    out = net.add("Softmax", net.add("MatMul", scaled, net.weight(4, 5)), axis=-1) if pick(net, 0, 1) else scaled
    mean = net.add("Reshape", net.add("ReduceMean", out, keepdims=1), net.constant(ints(1, 1, 1, 1)))
    return net.add("Mul", "image", mean), maybe_read(net, linear, scaled)


def linears_over_maps(net: Net) -> Drawn:
    """Targets with 0 and -1, sides exchanged, a constant first operand, two biases, another order on the way back."""
    _, channels, height, width = net.shape
    target = pick(net, (1, channels, -1), (0, 0, -1), (1, channels, height * width))
    tokens = net.add("Reshape", "image", net.constant(ints(*target)))
    turned, out = net.add("Transpose", tokens, perm=[0, 2, 1]), pick(net, channels, 2)
    if sometimes(net, 0.15):
        product, out = net.add("MatMul", net.weight(height * width, height * width), turned), channels
    else:
        product = net.add(
            "MatMul", turned, net.weight(*pick(net, (channels, out), (channels, out), (1, channels, out)))
        )
    for _ in range(pick(net, 0, 1, 1, 2)):
        product = net.add("Add", *pick(net, (product, net.weight(out)), (net.weight(out), product)))
    back = net.add("Transpose", product, perm=pick(net, [0, 2, 1], [0, 2, 1], [0, 2, 1], [1, 2, 0]))
    size = pick(net, (1, out, height, width), (1, out, height, width), (1, out, width, height), (0, 0, height, width),
                (1, out, -1, width), (1, out, height * width, 1))  # fmt: skip
    return net.add("Reshape", back, net.constant(ints(*size))), maybe_read(net, tokens, product)


KINDS = (
    batch_inside, sizes_at_run_time, unusual_resize, concat_of_odd_parts, convolutions_with_attributes,
    scales_of_linears, linears_over_maps,
)  # fmt: skip
