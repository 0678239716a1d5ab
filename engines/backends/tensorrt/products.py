"""How much a kernel multiplies: TensorRT names what it fused into a kernel, and the shapes of its tensors say the rest.

``gemm`` and ``Fc`` are matrix products, ``correlation`` and ``Corr`` convolutions, ``deconv`` and ``Deco`` transposed
ones, and ``mha`` is a whole attention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product as pairs
from typing import Any, NamedTuple

from engines.roofline.kernels import Operand

_FUSED = re.compile(r"__myl_((?:[A-Z][a-z]*)+)")
_STEP = re.compile(r"[A-Z][a-z]*")
_WIDTH = ("int4", "fp4", "int8", "fp8", "fp16", "bf16", "fp32")  # the narrowest first


class Product(NamedTuple):
    """See Kernel for macs and type."""

    macs: int | None = 0
    type: str = ""
    attention: bool = False


def multiplied(
    layer: Mapping[str, Any], reads: Sequence[Operand], constants: Sequence[Operand], writes: Sequence[Operand]
) -> Product:
    """What the layer, one of TensorRT's account, multiplies."""
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    if "mha" in name or "mha" in kind.lower():
        return _attention(reads, writes) or Product(None, attention=True)
    steps = [step for found in _FUSED.finditer(name) for step in _STEP.findall(found[1])]
    if layer.get("ParameterType") == "Convolution":
        return _described(layer, reads, constants, writes) or Product(None)
    counts = {rule: steps.count(step) + (kind == whole) for rule, (step, whole) in _RULES.items()}
    if sum(counts.values()) == 0:
        return Product()
    if sum(counts.values()) > 1:
        return Product(None)
    first = next(rule for rule, count in counts.items() if count)
    # What a kernel writes after a resize is not what was multiplied; a 1x1 convolution may be a product of matrices.
    found = None if "Resi" in steps else first(reads, constants, writes)
    return found or _matrix_product(reads, constants, writes) or Product(None)


def _convolution(reads: Sequence[Operand], constants: Sequence[Operand], writes: Sequence[Operand]) -> Product | None:
    """Of (n, c, *map) with weights (out, c / groups, *kernel); what comes out may have been flattened to tokens."""
    spatial = [tensor for tensor in constants if len(tensor.shape) >= 3]
    weights = max(spatial, key=lambda tensor: tensor.elements, default=None)
    if weights is None:
        return None
    out, channels, *_ = weights.shape
    for source, target in pairs(reads, writes):
        fits = len(source.shape) == len(weights.shape) and source.shape[1] % channels == 0
        if fits and out % (source.shape[1] // channels) == 0 and out in target.shape:
            return Product(target.elements * math.prod(weights.shape[1:]), _wider(source, weights))
    return None


def _transposed(reads: Sequence[Operand], constants: Sequence[Operand], writes: Sequence[Operand]) -> Product | None:
    """Of (n, c, *map) with weights (c, out / groups, *kernel)."""
    weights = max(constants, key=lambda tensor: tensor.elements, default=None)
    if weights is None or not reads or len(reads[0].shape) < 3 or reads[0].shape[1] != weights.shape[0]:
        return None
    return Product(reads[0].elements * math.prod(weights.shape[1:]), _wider(reads[0], weights))


def _matrix_product(
    reads: Sequence[Operand], constants: Sequence[Operand], writes: Sequence[Operand]
) -> Product | None:
    """Of (b, m, k) and (b, k, n) or (k, n), in any order of their axes, to as many elements as (b, m, n) has.

    With the three sizes known k is settled, and is an axis of both; what is added to the product does not fit so.
    """
    weights = [tensor for tensor in sorted(constants, key=lambda each: -each.elements) if len(tensor.shape) > 1]
    for second in (*weights, *reads):
        for first, target in pairs(reads, writes):
            if first is second:
                continue
            for batch in _batches(first, second):
                square, rest = divmod(first.elements * second.elements, target.elements * batch)
                inner = math.isqrt(square)
                if not rest and inner**2 == square and inner in first.shape and inner in second.shape:
                    return Product(target.elements * inner, _wider(first, second))
    return None


def _batches(first: Operand, second: Operand) -> Iterator[int]:
    """How many products of matrices it may be: one, or as many as the leading axes of both say."""
    lead = math.prod(second.shape[:-2])
    if lead > 1 and lead == math.prod(first.shape[:-2]):
        yield lead
    yield 1


def _attention(reads: Sequence[Operand], writes: Sequence[Operand]) -> Product | None:
    """Of queries (b, m, d), keys (b, d, n) or (b, n, d) and values (b, n, e) to (b, m, e); b is windows times heads.

    Two of the three may be one tensor, which is then read once.
    """
    tensors = [tensor for tensor in reads if len(tensor.shape) >= 3]
    if len(tensors) < 2 or not writes:
        return None
    queries, keys = tensors[:2]
    heads = math.prod(queries.shape[:-2])
    m, d = queries.shape[-2:]
    n, odd = divmod(keys.elements, heads * d)
    e, more = divmod(writes[0].elements, heads * m)
    if odd or more or math.prod(keys.shape[:-2]) != heads or not {n, d} <= {*keys.shape[-2:]}:
        return None
    return Product(heads * m * n * (d + e), _wider(queries, keys), attention=True)


def _described(
    layer: Mapping[str, Any], reads: Sequence[Operand], constants: Sequence[Operand], writes: Sequence[Operand]
) -> Product | None:
    """A convolution outside of the compiler, whose parameters the inspector gives."""
    kernel, groups = layer.get("Kernel"), layer.get("Groups", 1)
    if not isinstance(kernel, list) or not reads or not writes or len(reads[0].shape) < 3:
        return None
    weights = next((tensor for tensor in constants if tensor.name == "Weights"), reads[0])
    inner = math.prod(map(int, kernel)) * reads[0].shape[1] // int(groups)
    return Product(writes[0].elements * inner, _wider(reads[0], weights))


def _wider(one: Operand, other: Operand) -> str:
    return max(one.type, other.type, key=lambda kind: _WIDTH.index(kind) if kind in _WIDTH else len(_WIDTH))


# Of each: how the step is called in a fused kernel's name, and the kind of a kernel that does nothing else.
_RULES = {
    _convolution: ("Corr", "correlation"),
    _transposed: ("Deco", "deconv"),
    _matrix_product: ("Fc", "gemm"),
}
