"""Thousands of small graphs that nearly are what a rewrite looks for: it must keep their values, or leave them alone.

Each is drawn from a seed: the right shape of subgraph with scales, axes, sizes, groups, biases and second readers that
may be off.  The judge is onnx's reference implementation in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import infer
from pipeline.graph.rewrites import apply_rules
from pipeline.graph.surgery import shape
from tests.pipeline.graph import near_kinds
from tests.pipeline.graph.drawn import maybe_read as _maybe_read
from tests.pipeline.graph.drawn import pick as _pick
from tests.pipeline.graph.drawn import seeds
from tests.pipeline.graph.test_rewrites import TOLERANCE, Net, in_float64

PLACES = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"]
GRAPHS = 250  # of each kind


def _resized(net: Net, x: str, channels: int, height: int, width: int) -> tuple[str, int, int]:
    """By scales or by sizes, often to what it was; its new height and width."""
    attributes = {
        "mode": _pick(net, "linear", "nearest", "cubic"),
        "coordinate_transformation_mode": _pick(net, *PLACES),
    }
    if net.rng.random() < 0.5:
        scales = [1.0, 1.0, float(_pick(net, 1.0, 1.0, 1.2, 2.0, 1.5)), float(_pick(net, 1.0, 1.0, 1.1, 3.0))]
        size = int(np.floor(height * scales[2])), int(np.floor(width * scales[3]))
        return net.add("Resize", x, "", net.constant(np.array(scales, np.float32)), **attributes), *size
    size = int(_pick(net, height, height, 2 * height, height + 1)), int(_pick(net, width, width, 2 * width))
    return net.resize(x, (1, channels, *size), **attributes), *size


def _resize_before_conv(net: Net) -> tuple[str, list[str]]:
    height, width = net.shape[2:]
    up, *_ = _resized(net, "image", 3, height, width)
    kernel = int(_pick(net, 1, 1, 1, 3))
    pads = [kernel // 2] * 4
    return net.conv(up, 3, int(_pick(net, 2, 3, 5)), kernel, bias=net.rng.random() < 0.5, pads=pads), _maybe_read(
        net, up
    )


def _concat_of_branches(net: Net) -> tuple[str, list[str]]:
    height, width = net.shape[2:]
    branches, channels = [], []
    for _ in range(int(_pick(net, 1, 2, 3))):
        count = int(_pick(net, 1, 2, 4))
        branch = net.conv("image", 3, count, bias=net.rng.random() < 0.5)
        if net.rng.random() < 0.5:
            mode = {"mode": _pick(net, "linear", "nearest"), "coordinate_transformation_mode": _pick(net, *PLACES[:4])}
            branch = net.resize(branch, (1, count, height, width), **mode)
        branches.append(branch)
        channels.append(count)
    cat = net.add("Concat", *branches, axis=int(_pick(net, 1, 1, -3)))
    fused = net.conv(cat, sum(channels), 4, int(_pick(net, 1, 1, 1, 3)), pads=[0, 0, 0, 0])
    return (fused if net.rng.random() < 0.5 else net.conv(fused, 4, 2)), _maybe_read(net, cat, fused)


def _two_convolutions(net: Net) -> tuple[str, list[str]]:
    kernel, group = int(_pick(net, 1, 3)), int(_pick(net, 1, 1, 3))
    attributes: dict[str, object] = {"group": group, "pads": [int(net.rng.integers(2))] * 4}
    if net.rng.random() < 0.3:
        attributes["strides"] = [2, 2]
    first = net.conv("image", 3, 6, kernel, bias=net.rng.random() < 0.5, **attributes)
    second = {"group": int(_pick(net, 1, 1, 2)), "pads": [int(net.rng.random() < 0.1)] * 4}
    return net.conv(first, 6, 4, bias=net.rng.random() < 0.5, **second), _maybe_read(net, first)


def _linear_over_a_map(net: Net) -> tuple[str, list[str]]:
    _, channels, height, width = net.shape
    count = channels * height * width
    batch = int(_pick(net, 1, 1, 1, 2)) if height * width % 2 == 0 else 1
    inner = channels
    flat = (batch, inner, count // batch // inner)
    tokens = net.add("Reshape", "image", net.constant(np.array(flat, np.int64)))
    swap = list(_pick(net, (0, 2, 1), (0, 2, 1), (0, 1, 2)))
    turned = net.add("Transpose", tokens, perm=swap)
    width_in = flat[1] if swap[2] == 1 else flat[2]
    length, out = flat[1] * flat[2] // width_in, int(_pick(net, channels, 2))
    product = net.add("MatMul", turned, net.weight(width_in, out))
    if net.rng.random() < 0.6:
        product = net.add("Add", product, net.weight(*_pick(net, (out,), (out,), (1, 1, out), (length, 1), (1,))))
    back = net.add("Transpose", product, perm=[0, 2, 1])
    total = batch * length * out
    size = (1, out, height, width) if total == out * height * width else (batch, out, 1, length)
    if net.rng.random() < 0.2:
        size = (size[0], size[1], size[3], size[2])
    return net.add("Reshape", back, net.constant(np.array(size, np.int64))), _maybe_read(net, tokens, product)


def _scaled_projection(net: Net) -> tuple[str, list[str]]:
    _, channels, height, width = net.shape
    tokens = net.add("Reshape", "image", net.constant(np.array([1, height * width, channels], np.int64)))
    linear = net.add("MatMul", tokens, net.weight(channels, 6))
    if net.rng.random() < 0.7:
        linear = net.add("Add", linear, net.weight(*_pick(net, (6,), (6,), (height * width, 6), (1,))))
    heads = net.add("Reshape", linear, net.constant(np.array([1, height * width, 2, 3], np.int64)))
    moved = net.add("Transpose", heads, perm=[0, 2, 1, 3])
    number = _pick(net, np.float32(0.5), np.full((1, 1), 3.0, np.float32), net.rng.normal(size=3).astype(np.float32))
    pair = [moved, net.constant(number)]
    if net.rng.random() < 0.3:
        pair.reverse()
    scaled = net.add(_pick(net, "Mul", "Mul", "Div", "Add"), *pair)
    keys = net.add("Reshape", net.add("MatMul", tokens, net.weight(channels, 6)), net.constant(np.array([1, 2, 3, -1])))
    scores = net.add("MatMul", scaled, keys)
    if net.rng.random() < 0.5:
        scores = net.add("Mul", scores, net.constant(_pick(net, np.float32(2), np.ones((1, 1, 1, 1, 1), np.float32))))
    return net.add("Softmax", scores, axis=-1), _maybe_read(net, scaled, moved, linear)


KINDS = (
    _resize_before_conv, _concat_of_branches, _two_convolutions, _linear_over_a_map, _scaled_projection,
)  # fmt: skip


def _as_map(net: Net, out: str, kind: Callable[[Net], tuple[str, list[str]]]) -> str:
    """Networks end in a map (1, K, h, w)."""
    return net.add("Identity" if kind is _scaled_projection else "Relu", out)


@pytest.mark.parametrize("kind", [*KINDS, *near_kinds.KINDS], ids=lambda kind: kind.__name__.strip("_"))
def test_values_stay(kind: Callable[[Net], tuple[str, list[str]]]) -> None:
    applied = left_alone = 0
    place = [*KINDS, *near_kinds.KINDS].index(kind)
    for seed in seeds(GRAPHS):
        net = Net(1, 3, 4 + seed % 3, 3 + seed % 4)
        net.rng = np.random.default_rng([seed, place])
        try:
            out, readers = kind(net)
            graph = net.graph(_as_map(net, out, kind), *readers)
        except DeployError:
            continue  # of a rank or batch that is no network's
        final = apply_rules(graph)[-1]
        places = sum(step.places for step in final.history)
        applied, left_alone = applied + (places > 0), left_alone + (places == 0)
        try:
            before = in_float64(graph)
        except ValueError:
            continue  # that onnx's reference implementation of Resize cannot do
        after = in_float64(final)
        np.testing.assert_allclose(
            after, before, rtol=0, atol=TOLERANCE * max(1, np.abs(before).max()), err_msg=f"seed {seed}"
        )
        _shapes_are_those_inferred(final)
    assert min(applied, left_alone) > GRAPHS // 20, (applied, left_alone)  # both are met, or nothing is tested


def _shapes_are_those_inferred(graph: OnnxGraph) -> None:
    model = graph.model.clone()
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    infer(model)
    inferred = {value.name: shape(value) for node in model.graph for value in node.outputs}
    assert inferred == {value.name: shape(value) for node in graph.model.graph for value in node.outputs}
