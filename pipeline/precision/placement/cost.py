"""What layers move and multiply in 8 bits and in halves: a roofline of the kernels that a compiler would make of them.

Bytes are of what a layer reads and writes and of its weights, once each; elementwise kernels count where 8 bits change
what they write, or whether they exist.  Everything else of the network is the same in both and is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import onnx_ir as ir

from engines.roofline.boards import Board
from pipeline.graph.macs import macs_by_node
from pipeline.graph.surgery import MOVES, computed, constant, integers, only_use, output_name, shape

_LAYERS = ("Conv", "MatMul", "Gemm")
_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Cast", "Erf", "Gelu", "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid",
    "HardSwish", "Tanh", "Softplus", "Sqrt", "Exp", "Pow",
)  # fmt: skip
_FUNCTIONS = frozenset(_ELEMENTWISE) - {"Add", "Sub", "Mul", "Div", "Cast", "Relu"}
_SIZE = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
WORTH = 0.02  # of what a group costs in halves: less may be what the model of the kernels leaves out
_SMALL = 4  # layers of a group of which all subsets are tried


@dataclass(frozen=True)
class Cost:
    """bytes: moved.  ms: at least, on the board that it was computed for."""

    bytes: int = 0
    ms: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.ms + other.ms)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.bytes - other.bytes, self.ms - other.ms)


@dataclass(frozen=True)
class Maker:
    """What a layer reads: the tensor `value`, before anything only moves it.

    layer: the one layer that it is made from elementwise, None where another kernel writes it.
    function: whether an activation function that does not fuse with 8 bits stands between them.
    attention: whether an attention writes it whose heads have to be put side by side.
    normalised: whether a LayerNorm does.
    """

    value: ir.Value
    layer: ir.Node | None = None
    function: bool = False
    attention: bool = False
    normalised: bool = False


@dataclass(frozen=True)
class Paying:
    """Of one group of layers.  layers: first outputs of those that pay.  saved: by them, against none of the group."""

    group: tuple[str, ...]
    layers: tuple[str, ...]
    saved: Cost


def paying(
    model: ir.Model, layers: Sequence[ir.Node], board: Board, kind: str, half: str, epilogues: bool
) -> list[Paying]:
    """Which of `layers` are faster in `kind` (int8 or fp8) than in `half` by the roofline of `board`.

    epilogues: whether the compiler's 8-bit kernels take bias, activation function and sum along and write 8 bits.
    Layers that read one tensor, or one another through an activation function, are decided together.
    """
    book = _Book(model, board, kind=kind, half=half, epilogues=epilogues)
    found = []
    for group in _groups(layers):
        none = book.cost(group, frozenset())
        choices: Iterator[tuple[ir.Node, ...]] = (
            chosen for size in range(len(group), 0, -1) for chosen in combinations(group, size)
        ) if len(group) <= _SMALL else iter([tuple(group)])  # fmt: skip
        best = max(((none - book.cost(group, frozenset(some)), some) for some in choices), key=lambda pair: pair[0].ms)
        names = tuple(map(output_name, group))
        pays = best[0].ms > WORTH * none.ms
        found.append(Paying(names, tuple(map(output_name, best[1])) if pays else (), best[0]))
    return found


def maker_of(node: ir.Node) -> Maker:
    """Of what `node`, a layer, reads."""
    value = node.inputs[0]
    assert value is not None
    while (producer := value.producer()) is not None and producer.op_type in (*MOVES, "Cast") and producer.inputs[0]:
        value = producer.inputs[0]
    ends: set[ir.Node | None] = set()
    functions: set[str] = set()
    pending = [value]
    while pending:
        producer = pending.pop().producer()
        if producer is None or producer.op_type not in (*_ELEMENTWISE, *MOVES):
            ends.add(producer)
            continue
        functions.add(producer.op_type)
        pending += computed(producer)
    (end,) = ends if len(ends) == 1 else (None,)
    if end is None or end.op_type not in _LAYERS:
        return Maker(value, normalised=end is not None and end.op_type == "LayerNormalization")
    if constant(end.inputs[1]) is None:
        return Maker(value, attention=_heads(end) > 1)
    fuses = end.op_type == "Conv"
    return Maker(value, end, function=bool(functions & _FUNCTIONS) or ("Relu" in functions and not fuses))


def bias_of(node: ir.Node) -> ir.Node | None:
    """What adds the bias of a layer: the layer itself, or the Add behind a MatMul; None where there is none."""
    if node.op_type != "MatMul":
        return node if len(node.inputs) > 2 and node.inputs[2] is not None else None
    reader = only_use(node.outputs[0])
    adds = (
        reader is not None and reader.op_type == "Add" and any(constant(value) is not None for value in reader.inputs)
    )
    return reader if adds else None


class _Book:
    def __init__(self, model: ir.Model, board: Board, kind: str, half: str, epilogues: bool) -> None:
        self._macs, self._board, self._kind, self._half = macs_by_node(model), board, kind, half
        self._wide, self._byte, self._epilogues = _SIZE[half], _SIZE[kind], epilogues

    def cost(self, group: Sequence[ir.Node], quantised: frozenset[ir.Node]) -> Cost:
        total = Cost()
        for value, readers in _by_input(group).items():
            maker, count = maker_of(readers[0]), _elements(value)
            total += self._written(maker, count, readers, quantised)
            products = [node in quantised for node in readers if node.op_type != "Conv"]
            for size, several in ((self._byte, sum(products)), (self._wide, len(products) - sum(products))):
                total -= self._moving(size * count * max(several - 1, 0))  # of one tensor they are one kernel
        for node in group:
            total += self._layer(node, node in quantised)
        return total

    def _layer(self, node: ir.Node, quantised: bool) -> Cost:
        size, out = self._byte if quantised else self._wide, self._wide * _elements(node.outputs[0])
        moved = size * (_elements(node.inputs[0]) + _elements(node.inputs[1])) + out
        peak = self._board.peaks[self._kind if quantised else self._half]
        after = "" if self._epilogues or node.op_type == "Conv" else _after_bias(node)
        fused = out if after == "a sum" and not quantised else 0  # the other summand
        cost = self._kernel(moved + fused, 2 * self._macs[output_name(node)] / peak / 1e9)
        return cost + self._moving(2 * out) if after and quantised else cost

    def _written(self, maker: Maker, count: int, readers: Sequence[ir.Node], quantised: frozenset[ir.Node]) -> Cost:
        """By the kernel that writes what `readers` read, and by those that come in addition."""
        bytewise = any(reader in quantised for reader in readers)
        others = any(reader not in quantised for reader in (*readers, *_real_readers(maker.value)))
        size = self._wide * (others or not bytewise) + self._byte * bytewise
        made = maker.layer
        if made is None:
            if not maker.attention:
                torn = maker.normalised and not self._epilogues and any(map(_wide_map, quantised.intersection(readers)))
                return self._moving(size * count + 2 * _SIZE["fp32"] * count * torn)
            # An attention multiplies for longer than it writes.  Its heads are put side by side by another kernel.
            apart = bytewise and not self._epilogues and self._kind == "int8"
            return Cost(size * count) + self._moving(2 * self._byte * count * apart)
        if self._epilogues:
            return self._moving((size - self._wide) * count) if made in quantised else Cost()
        if maker.function:
            return self._moving((self._wide + size) * count) if bytewise or made in quantised else Cost()
        return self._moving((self._wide + self._byte) * count) if bytewise else Cost()

    def _moving(self, moved: int) -> Cost:
        return self._kernel(moved, 0.0)

    def _kernel(self, moved: int, arithmetic_ms: float) -> Cost:
        memory_ms = moved / self._board.gb_per_s / 1e6
        return Cost(moved, max(memory_ms, arithmetic_ms) if arithmetic_ms else memory_ms)


def _wide_map(node: ir.Node) -> bool:
    """Whether `node` is a convolution of more than single pixels.

    TensorRT-RTX takes the LayerNorm before it apart, with an FP32 map between the parts, to write INT8 channel by
    channel; before one of single pixels it does so in halves too.
    """
    weight = shape(node.inputs[1]) or ()
    return node.op_type == "Conv" and math.prod(weight[2:]) > 1


def _heads(product: ir.Node) -> int:
    return math.prod((shape(product.outputs[0]) or ())[:-2])


def _elements(value: ir.Value | None) -> int:
    return math.prod(shape(value) or (0,))


def _groups(layers: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """Layers that read one tensor, or one that another of them makes."""
    found: list[list[ir.Node]] = []
    for node in layers:
        maker = maker_of(node)
        near = [
            group for group in found
            if maker.layer in group or any(maker_of(other).value is maker.value for other in group)
        ]  # fmt: skip
        found = [group for group in found if group not in near]
        found.append([*(each for group in near for each in group), node])
    return found


def _by_input(group: Sequence[ir.Node]) -> dict[ir.Value, list[ir.Node]]:
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in group:
        found.setdefault(maker_of(node).value, []).append(node)
    return found


def _real_readers(value: ir.Value) -> Iterator[ir.Node]:
    """All that read `value`, through what only moves it."""
    for node in value.consumers():
        if node.op_type in (*MOVES, "Cast"):
            yield from _real_readers(node.outputs[0])
        else:
            yield node


def _after_bias(product: ir.Node) -> str:
    """What reads a product once its bias is added: "a sum" of two activations, "nothing" that could take the bias
    along, or "", a kernel that is there anyhow.
    """
    adds = bias_of(product)
    pending, moved, found = [] if adds is None else [adds.outputs[0]], False, ""
    while pending:
        for reader in pending.pop().consumers():
            if reader.op_type in (*MOVES, "Cast"):
                moved = moved or _transposes(reader)
                pending.append(reader.outputs[0])
            elif reader.op_type == "Add" and len(computed(reader)) > 1:
                return "a sum"
            elif reader.op_type in _LAYERS and not moved:
                found = "nothing"
    return found


def _transposes(node: ir.Node) -> bool:
    """Whether a Transpose changes the order in memory: more than axes of size 1 change places."""
    dims = shape(node.inputs[0]) if node.op_type == "Transpose" else None
    if dims is None:
        return False
    order = [axis for axis in integers(node, "perm", range(len(dims))[::-1]) if dims[axis] > 1]
    return order != sorted(order)
