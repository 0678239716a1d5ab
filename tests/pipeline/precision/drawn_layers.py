"""Small networks drawn from seeds for the lowering: shared weights, several readers, odd ranks, scalars."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.graph.onnx_graph import OnnxGraph
from tests.pipeline.graph.drawn import ints, pick, sometimes
from tests.pipeline.graph.test_rewrites import Net

Shape = tuple[int, ...]
Tensor = tuple[str, Shape]
LARGEST = 3000  # values of a tensor


class Drawn(Net):
    """Weights of one shape are sometimes one initializer, and of very different sizes."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(1, 3, int(rng.integers(2, 5)), int(rng.integers(2, 5)))
        self.rng, self.shared = rng, {}  # type: ignore[var-annotated]

    def drawn(self, *shape: int) -> str:
        if shape in self.shared and sometimes(self, 0.5):
            return str(self.shared[shape])
        fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0] if shape else 1
        size = pick(self, 1, 1, 1, 1e-3, 30) / np.sqrt(fan)
        self.shared[shape] = self.constant((self.rng.standard_normal(shape) * size).astype(np.float32))
        return str(self.shared[shape])


def network(seed: int) -> OnnxGraph:
    """Raises DeployError where what was drawn is no network."""
    net = Drawn(np.random.default_rng([seed, 21]))
    pool = [(net.add("Conv", "image", net.drawn(4, 3, 1, 1), net.drawn(4)), (1, 4, *net.shape[2:]))]
    for _ in range(net.rng.integers(2, 8)):
        tensor = pool[net.rng.integers(len(pool))] if sometimes(net, 0.4) else pool[-1]
        made = pick(net, *STEPS)(net, tensor, [name for name, shape in pool if shape == tensor[1]])
        if made is not None and np.prod(made[1]) < LARGEST:
            pool.append(made)
    x, shape = pool[-1]
    x = net.add("Reshape", x, net.constant(ints(1, -1, 1, 1)))
    if pick(net, 0, 1):
        x = net.add("Conv", x, net.drawn(5, int(np.prod(shape)), 1, 1))
    return net.graph(x)


def _conv(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor | None:
    x, shape = tensor
    if len(shape) != 4:
        return None
    group = pick(net, 1, 1, shape[1])
    out = shape[1] if group > 1 else pick(net, 4, 8, shape[1])
    bias = [net.drawn(out)] if pick(net, 0, 1) else []
    return net.add("Conv", x, net.drawn(out, shape[1] // group, 1, 1), *bias, group=group), (shape[0], out, *shape[2:])


def _matmul(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor | None:
    x, shape = tensor
    out = pick(net, 4, 16, shape[-1])
    return (net.add("MatMul", x, net.drawn(shape[-1], out)), (*shape[:-1], out)) if len(shape) > 1 else None


def _gemm(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor | None:
    x, shape = tensor
    if len(shape) != 2:
        return None
    out, transposed = pick(net, 4, 16), pick(net, 0, 1)
    weight = net.drawn(*((out, shape[1]) if transposed else (shape[1], out)))
    bias = [net.drawn(*pick(net, (out,), (1, out), ()))] if pick(net, 0, 1) else []
    factors = {"alpha": float(pick(net, 1, 0.5, -1)), "beta": float(pick(net, 1, 2))}
    return net.add("Gemm", x, weight, *bias, transB=transposed, **factors), (shape[0], out)


def _sum(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor:
    x, shape = tensor
    pair = (x, pick(net, *alike)) if pick(net, 0, 1) else (net.drawn(shape[-1]), x)
    return net.add(pick(net, "Add", "Sub"), *pair), shape


def _product(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor:
    return net.add("Mul", tensor[0], pick(net, *alike)), tensor[1]


def _scalar(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor:
    return net.add(pick(net, "Mul", "Add"), tensor[0], net.constant(np.float32(pick(net, 0.5, 2, 1e-4)))), tensor[1]


def _activation(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor:
    op = pick(net, "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip")
    low = pick(net, "", net.constant(np.float32(-1)))
    limits = [low, net.constant(np.float32(2))] if op == "Clip" else []
    return net.add(op, tensor[0], *limits), tensor[1]


def _norm(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor | None:
    x, shape = tensor
    bias = [net.drawn(shape[-1])] if pick(net, 0, 1) else []
    made = net.add("LayerNormalization", x, net.drawn(shape[-1]), *bias, axis=-1, epsilon=pick(net, 0.01, 1.0))
    return (made, shape) if shape[-1] > 1 else None


def _softmax(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor:
    return net.add("Softmax", tensor[0], axis=int(net.rng.integers(-len(tensor[1]), len(tensor[1])))), tensor[1]


def _move(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor:
    x, shape = tensor
    kind, rank, size = (
        pick(net, "turn", "turn", "tokens", "rows", "more", "part", "shape"),
        len(shape),
        int(np.prod(shape)),
    )
    if kind == "turn":
        order = [int(axis) for axis in net.rng.permutation(rank)]
        return net.add("Transpose", x, perm=order), tuple(shape[axis] for axis in order)
    if kind == "tokens":
        return net.add("Reshape", x, net.constant(ints(1, -1, shape[-1]))), (1, size // shape[-1], shape[-1])
    if kind == "rows" and rank > 1:
        return net.add("Flatten", x, axis=1), (shape[0], size // shape[0])
    if kind == "more" and rank < 4:
        return net.add("Unsqueeze", x, net.constant(ints(-1))), (*shape, 1)
    if kind == "part" and shape[-1] > 1:
        return net.add("Slice", x, *(net.constant(ints(v)) for v in (1, 99, -1))), (*shape[:-1], shape[-1] - 1)
    return (net.add("Reshape", x, net.add("Shape", x)) if kind == "shape" else net.add("Identity", x)), shape


def _pool(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor | None:
    x, shape = tensor
    return (net.add("GlobalAveragePool", x), (*shape[:2], 1, 1)) if len(shape) == 4 else None


def _concat(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor:
    x, shape = tensor
    axis = int(net.rng.integers(-len(shape), len(shape)))
    sizes = list(shape)
    sizes[axis] *= 2
    return net.add("Concat", x, pick(net, *alike), axis=axis), tuple(sizes)


def _resize(net: Drawn, tensor: Tensor, alike: list[str]) -> Tensor | None:
    x, shape = tensor
    if len(shape) != 4:
        return None
    sizes = (*shape[:2], 2 * shape[2], shape[3] + 1)
    return net.resize(x, sizes, mode=pick(net, "linear", "nearest")), sizes


STEPS: tuple[Callable[[Drawn, Tensor, list[str]], Tensor | None], ...] = (
    _conv, _conv, _matmul, _matmul, _gemm, _sum, _product, _scalar, _activation, _norm, _softmax, _move, _move, _pool,
    _concat, _resize,
)  # fmt: skip
