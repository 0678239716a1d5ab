"""Generators of near misses for the forms that serve GPUs; as `near_kinds`."""

from __future__ import annotations

from tests.pipeline.graph.drawn import ints, maybe_read, pick, sometimes
from tests.pipeline.graph.near_kinds import Drawn
from tests.pipeline.graph.test_rewrites import Net


def _tokens(net: Net, x: str, channels: int, height: int, width: int) -> tuple[str, int, int]:
    """Tokens of a map, mostly each pixel's channels together; their count and width."""
    if sometimes(net, 0.2):  # the same numbers, cut otherwise
        return net.add("Reshape", x, net.constant(ints(1, height * width, channels))), height * width, channels
    if sometimes(net, 0.3):
        turned = net.add("Transpose", x, perm=[0, 2, 3, 1])
        return net.add("Reshape", turned, net.constant(ints(1, height * width, channels))), height * width, channels
    flat = net.add("Reshape", x, net.constant(ints(1, channels, height * width)))
    if sometimes(net, 0.1):
        return flat, channels, height * width
    return net.add("Transpose", flat, perm=[0, 2, 1]), height * width, channels


def _linear(net: Net, tokens: str, length: int, inner: int, outer: int) -> str:
    """Nearly always x W + b; the bias may be a number, differ by token, or come twice."""
    weight = net.weight(*pick(net, (inner, outer), (inner, outer), (inner, outer), (1, inner, outer)))
    product = net.add("MatMul", tokens, weight)
    for _ in range(pick(net, 0, 1, 1, 1, 2)):
        bias = net.weight(*pick(net, (outer,), (outer,), (outer,), (1,), (1, 1, outer), (length, outer), (length, 1)))
        product = net.add("Add", *pick(net, (product, bias), (bias, product)))
    return product


def linear_into_map(net: Net) -> Drawn:
    """Tokens through a Linear into a map: other orders on the way, a map of another size, tokens that are read too."""
    _, channels, height, width = net.shape
    tokens, length, inner = _tokens(net, "image", channels, height, width)
    tokens = net.add("Tanh", tokens)
    outer = pick(net, 4, 3, inner)
    product = _linear(net, tokens, length, inner, outer)
    if sometimes(net, 0.3) and length == height * width:
        cut = net.add("Reshape", product, net.constant(ints(1, *pick(net, (height, width), (width, height)), outer)))
        return net.add("Transpose", cut, perm=pick(net, [0, 3, 1, 2], [0, 3, 1, 2], [0, 3, 2, 1])), [
            *maybe_read(net, tokens, product, cut)
        ]
    back = net.add("Transpose", product, perm=pick(net, [0, 2, 1], [0, 2, 1], [0, 2, 1], [0, 1, 2]))
    total = length * outer
    sizes = [(1, outer, height, width), (1, outer, width, height), (1, total // height // width, height, width)]
    size = pick(net, *(s for s in sizes if s[1] * s[2] * s[3] == total), (1, total, 1, 1))
    return net.add("Reshape", back, net.constant(ints(*size))), maybe_read(net, tokens, product, back)


def linear_out_of_map(net: Net) -> Drawn:
    """A map's tokens through a Linear, which become a map again elsewhere."""
    _, _, height, width = net.shape
    made = net.add("Relu", net.conv("image", 3, 4))
    tokens, length, inner = _tokens(net, made, 4, height, width)
    if pick(net, 0, 1):
        scale = net.weight(*pick(net, (), (1,), (1, 1), (1, 1, 1, 1), (inner,)))
        tokens = net.add("Erf", net.add("Mul", tokens, scale))
        if sometimes(net, 0.1):
            tokens = net.add("Reshape", tokens, net.constant(ints(1, length, inner)))
    if pick(net, 0, 1):
        tokens = net.add("Sub", tokens, net.add("Sigmoid", tokens))
    product = _linear(net, tokens, length, inner, outer := pick(net, 2, inner))
    mixed = net.add("Add", product, net.add("MatMul", tokens, net.weight(inner, outer))) if sometimes(net) else product
    out = net.add("Reshape", net.add("Tanh", mixed), net.constant(ints(1, length * outer, 1, 1)))
    return out, maybe_read(net, made, tokens, product)


def norm_into_map(net: Net) -> Drawn:
    """A normalisation over other axes, without a bias, read as tokens too, as two maps of two sizes."""
    _, channels, height, width = net.shape
    tokens, length, inner = _tokens(net, "image", channels, height, width)
    axis = pick(net, -1, -1, 2, 1, -2)
    size = (inner,) if axis in (-1, 2) else (length, inner)
    bias = [net.weight(*size)] if pick(net, True, True, False) else []
    normed = net.add(
        "LayerNormalization", tokens, net.weight(*size), *bias, axis=axis, epsilon=pick(net, 1e-5, 1e-2, 0.5)
    )
    turned = net.add("Transpose", normed, perm=pick(net, [0, 2, 1], [0, 2, 1], [0, 2, 1], [0, 1, 2]))
    total = length * inner
    sizes = [(1, inner, height, width), (1, inner, height, width), (1, inner, width, height), (1, total, 1, 1)]
    maps = [
        net.add("Reshape", turned, net.constant(ints(*pick(net, *(s for s in sizes if s[1] * s[2] * s[3] == total)))))
        for _ in range(pick(net, 1, 1, 2))
    ]
    pooled = [net.add("ReduceMean", net.add("Tanh", each), keepdims=1) for each in maps]
    return net.add("Mul", maps[0], net.add("Sum", *pooled)), maybe_read(net, normed, turned, *maps)


def attention(net: Net) -> Drawn:
    """Heads, biases that differ by key, softmax over queries, scores that are masked or scaled, no projection after."""
    _, channels, height, width = net.shape
    tokens, length, inner = _tokens(net, "image", channels, height, width)
    heads = pick(net, 1, 1, 2)
    depth = pick(net, 2, 3)
    few = net.add("Slice", tokens, net.constant(ints(0)), net.constant(ints(length // 2 + 1)), net.constant(ints(1)))
    keys = length // 2 + 1

    def split(x: str, count: int, perm: list[int]) -> str:
        cut = net.add("Reshape", x, net.constant(ints(1, count, heads, depth)))
        return net.add("Transpose", cut, perm=perm)

    q = split(_linear(net, tokens, length, inner, heads * depth), length, [0, 2, 1, 3])
    k = _linear(net, few, keys, inner, heads * depth)
    v = _linear(net, few, keys, inner, heads * depth)
    scores = net.add("MatMul", q, split(k, keys, [0, 2, 3, 1]))
    if sometimes(net, 0.3):
        scores = net.add("Mul", scores, net.weight(*pick(net, (), (1,), (keys,), (1, 1, length, keys))))
    if sometimes(net, 0.3):
        scores = net.add("Add", scores, net.weight(*pick(net, (keys,), (length, keys), (heads, 1, 1))))
    if sometimes(net, 0.1):
        scores = net.add("Tanh", scores)
    weights = net.add("Softmax", scores, axis=pick(net, -1, -1, -1, 3, 2))
    mixed = net.add("MatMul", weights, split(v, keys, [0, 2, 1, 3]))
    joined = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]),
                     net.constant(ints(1, length, heads * depth)))  # fmt: skip
    out = _linear(net, joined, length, heads * depth, 3) if pick(net, True, True, False) else joined
    mean = net.add("Reshape", net.add("ReduceMean", out, net.constant(ints(1)), keepdims=1),
                   net.constant(ints(1, -1, 1, 1)))  # fmt: skip
    return mean, maybe_read(net, k, v, scores, weights, mixed)


KINDS = (linear_into_map, linear_out_of_map, norm_into_map, attention)
