"""SmoothQuant over drawn readers of a LayerNorm: exact in float64, with the ranges that are then measured, or declined.

The channels go through chains of Transpose, Reshape and the like, in which other axes have the same length.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.plan import NodePlan, PrecisionPlan
from pipeline.precision.smooth import smooth
from tests.pipeline.graph.drawn import ints, pick, seeds, sometimes
from tests.pipeline.graph.test_rewrites import TOLERANCE, Net, in_float64
from tests.pipeline.precision.max_ranges import ranges_from_windows
from tests.pipeline.precision.placement import LAYERS

GRAPHS = 250
Shape = tuple[int, ...]


def _mean(net: Net, x: str) -> str:
    return net.add("Reshape", net.add("ReduceMean", x, keepdims=1), net.constant(ints(1, 1, 1, 1)))


def _layer(net: Net, x: str, shape: Shape) -> str:
    """What reads the channels, mostly as a layer that can take a factor."""
    rank, last = len(shape), shape[-1]
    if rank == 4 and shape[0] == 1 and sometimes(net, 0.8):
        channels = shape[1]
        group, out = pick(net, 1, 1, channels, channels, 2 - channels % 2), pick(net, channels, 2 * channels)
        kernel = pick(net, 1, min(3, *shape[2:]))
        bias = [net.weight(out)] if pick(net, 0, 1) else []
        weight = net.weight(out, channels // group, kernel, kernel)
        return net.add("Conv", x, weight, *bias, group=group, pads=[kernel // 2] * 4)
    if rank == 2 and sometimes(net, 0.7):
        turned, transposed = int(sometimes(net, 0.15)), pick(net, 0, 1)
        inner = shape[0] if turned else last
        weight = net.weight(4, inner) if transposed else net.weight(inner, 4)
        return net.add("Gemm", x, weight, transA=turned, transB=transposed, alpha=0.5)
    if sometimes(net, 0.05) and rank > 1:
        return net.add("MatMul", net.weight(3, shape[-2]), x)
    if sometimes(net, 0.05):
        return net.add("MatMul", x, net.weight(1, last, 5))
    if sometimes(net, 0.05) and rank > 1:
        return net.add("MatMul", x, net.add("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2]))
    if sometimes(net, 0.03):
        return net.add("Relu", x)
    return net.add("MatMul", x, net.weight(last, 5))


def _moved(net: Net, x: str, shape: Shape) -> tuple[str, Shape]:
    rank, last, size = len(shape), shape[-1], int(np.prod(shape))
    second = shape[1] if rank > 1 else 1
    kind = pick(net, "turn", "turn", "turn", "reverse", "more", "less", "flat", "shape", "shape", "shape")
    if kind == "turn" and rank > 1:
        order = [*range(rank - 2), rank - 1, rank - 2]
        if sometimes(net, 0.3):
            order = [int(axis) for axis in net.rng.permutation(rank)]
        return net.add("Transpose", x, perm=order), tuple(shape[axis] for axis in order)
    if kind == "reverse":
        return net.add("Transpose", x), shape[::-1]
    if kind == "more" and rank < 5:
        axis = int(net.rng.integers(rank + 1))
        return net.add("Unsqueeze", x, net.constant(ints(axis))), (*shape[:axis], 1, *shape[axis:])
    if kind == "less" and 1 in shape and rank > 2:
        axis = shape.index(1)
        return net.add("Squeeze", x, net.constant(ints(axis))), (*shape[:axis], *shape[axis + 1 :])
    if kind == "flat" and rank > 1:
        axis = int(net.rng.integers(1, rank))
        return net.add("Flatten", x, axis=axis), (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
    target = pick(
        net, (shape[0], -1, last), (-1, last), (1, second, 2, -1), (1, second, -1, 1), (1, second, 1, -1),
        (1, -1, 2, last), (last, -1), (1, last, -1),
    )  # fmt: skip
    known = -int(np.prod(target))
    if size % known:
        return x, shape
    return net.add("Reshape", x, net.constant(ints(*target))), tuple(size // known if s == -1 else s for s in target)


def _read(net: Net, x: str, shape: Shape, depth: int = 0) -> str:
    if depth == 4 or pick(net, True, False):
        return _mean(net, _layer(net, x, shape))
    moved, sizes = _moved(net, x, shape)
    out = _read(net, moved, sizes, depth + 1)
    return net.add("Add", out, _read(net, moved, sizes, depth + 1)) if sometimes(net, 0.15) else out


def drawn(seed: int) -> OnnxGraph:
    rng = np.random.default_rng([seed, 9])
    net = Net(1, 3, 2, int(rng.integers(2, 5)))
    net.rng = rng
    rows = 2 * net.shape[3]
    channels = pick(net, 4, 6, rows)
    tokens = net.add("Reshape", net.conv("image", 3, channels), net.constant(ints(1, channels, rows)))
    axis = pick(net, -1, -1, -1, 2, 2, 1)
    gain = rng.standard_normal((rows, channels) if axis == 1 else channels).astype(np.float32)
    gain[..., 0] *= 20  # an outlier
    bias = [net.weight(*gain.shape)] if pick(net, 0, 1) else []
    turned = net.add("Transpose", tokens, perm=[0, 2, 1])
    norm = net.add("LayerNormalization", turned, net.constant(gain), *bias, axis=axis)
    out = _read(net, norm, (1, rows, channels))
    if sometimes(net, 0.2):
        out = net.add("Add", out, _read(net, norm, (1, rows, channels)))
    return net.graph(net.add("Mul", "image", out))


def test_smoothing_is_exact_or_declined() -> None:
    reasons: Counter[str] = Counter()
    for seed in seeds(GRAPHS):
        graph = drawn(seed)
        x = np.random.default_rng(seed).standard_normal(graph.input_shape, np.float32)
        ranges = ranges_from_windows(graph, [x])
        layers = [node for node in graph.model.graph if node.op_type in LAYERS]
        plan = PrecisionPlan("int8", tuple(NodePlan(str(n.outputs[0].name), n.op_type, "int8", "") for n in layers))
        smoothed, moved, report = smooth(graph, plan, ranges)
        reasons[" ".join(report[0].declined.split()[:5])] += 1
        if report[0].declined:
            continue
        before, after = in_float64(graph), in_float64(smoothed)
        atol = 2 * TOLERANCE * max(1, np.abs(before).max())  # both sides of each layer are rounded to float32 once
        np.testing.assert_allclose(after, before, rtol=0, atol=atol, err_msg=f"seed {seed}")
        measured = ranges_from_windows(smoothed, [x]).tensors
        for name in moved.tensors.keys() & measured.keys():
            assert abs(measured[name].amax / moved.tensors[name].amax - 1) < 1e-4, f"seed {seed}, {name}"
    assert reasons[""] > GRAPHS // 5
    assert len(reasons) > 3  # readers of several kinds were met that it cannot use
