"""The kernels that a compiler made of a network: what each reads, writes and multiplies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from engines.errors import DeployError

# Bits of one element.
BITS = {
    "fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "uint8": 8, "bool": 8, "int4": 4, "fp4": 4,
    "int32": 32, "int64": 64,
}  # fmt: skip
OTHER = "other"  # the stage of kernels that touch no map, where there is no stage before or after them


@dataclass(frozen=True)
class Operand:
    """A tensor of a kernel.  type: one of BITS.  Raises DeployError for another."""

    name: str
    shape: tuple[int, ...]
    type: str

    def __post_init__(self) -> None:
        if self.type not in BITS:
            raise DeployError(f"tensor {self.name}: got type {self.type!r}, expected one of {', '.join(BITS)}")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return (self.elements * BITS[self.type] + 7) // 8

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape)) or 'scalar'} {self.type}"


@dataclass(frozen=True)
class Kernel:
    """One launch.  name, kind: the compiler's.  constants: weights, scales and the like.

    macs: multiply-adds of its convolutions and matrix products, 0 where it has none, None where it has some and they
    do not follow from its tensors.  computes_in: the type that they are computed in, "" where there are none: of two
    operands the wider, since tensor cores take two of one type.  attention: a whole softmax(QK)V.  layers: names of the
    ONNX nodes that it came from, where the compiler tells.
    """

    name: str
    kind: str
    reads: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    writes: tuple[Operand, ...]
    macs: int | None = 0
    computes_in: str = ""
    attention: bool = False
    layers: tuple[str, ...] = ()

    @cached_property
    def bytes(self) -> int:
        """Each tensor once, from and to memory; no cache is assumed."""
        return sum(tensor.bytes for tensor in (*self.reads, *self.constants, *self.writes))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}


@dataclass(frozen=True)
class KernelPlan:
    """All kernels of one run, in their order.

    source: what made and told them, for people.  proxy: compiled by a relative of the compiler that serves the GPU in
    question, not read from an engine of that GPU.  window: (height, width) in pixels.
    attentions: softmaxes of the graph that feed a product.  unaccounted: convolutions and products of the graph, by
    name, that are in no kernel with known multiply-adds: the compiler has folded them, or unrolled tiny ones.
    """

    source: str
    proxy: bool
    window: tuple[int, int]
    kernels: tuple[Kernel, ...]
    attentions: int
    unaccounted: tuple[str, ...] = ()

    @cached_property
    def bytes(self) -> int:
        return sum(kernel.bytes for kernel in self.kernels)

    @cached_property
    def fp32_written(self) -> int:
        """Bytes that kernels write as fp32."""
        return sum(tensor.bytes for kernel in self.kernels for tensor in kernel.writes if tensor.type == "fp32")

    @property
    def fused_attentions(self) -> int:
        return sum(kernel.attention for kernel in self.kernels)

    @cached_property
    def macs(self) -> int:
        """Of the kernels whose multiply-adds are known; padding counts, as it is computed."""
        return sum(kernel.macs or 0 for kernel in self.kernels)

    @property
    def unknown(self) -> int:
        """Kernels that multiply, and it does not follow from their tensors how much."""
        return sum(kernel.macs is None for kernel in self.kernels)

    @cached_property
    def macs_by_type(self) -> dict[str, int]:
        """By the type that they are computed in, the largest first."""
        return _summed((kernel.computes_in, kernel.macs or 0) for kernel in self.kernels if kernel.macs)

    @cached_property
    def bytes_by_type(self) -> dict[str, int]:
        """Of everything read and written, by the type of the tensor, the largest first."""
        tensors = (t for kernel in self.kernels for t in (*kernel.reads, *kernel.constants, *kernel.writes))
        return _summed((tensor.type, tensor.bytes) for tensor in tensors)

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """Where each kernel lies: ``1/4``, the share of the window's height that its finest map has.

        Networks go down to their coarsest map and, most of them, up again; on the way up it is ``1/4 up``.  A kernel
        that touches a coarser map on the way (the keys of SegFormer's attention) belongs where its neighbours are.
        """
        finest = [_finest(kernel, self.window) for kernel in self.kernels]
        known = [height for height in finest if height is not None]
        if not known:
            return (OTHER,) * len(finest)
        turn = max(index for index, height in enumerate(finest) if height == min(known))
        heights = [height or min(known) for height in finest]
        down = [max(heights[index : turn + 1]) for index in range(turn + 1)]
        up = [max(heights[turn : index + 1]) for index in range(turn + 1, len(heights))]
        names = {height: _share(self.window[0], height) for height in {*down, *up}}
        return (*(names[height] for height in down), *(f"{names[height]} up" for height in up))

    @cached_property
    def bytes_by_stage(self) -> dict[str, int]:
        """In the order of execution."""
        found: dict[str, int] = {}
        for stage, kernel in zip(self.stages, self.kernels, strict=True):
            found[stage] = found.get(stage, 0) + kernel.bytes
        return found

    def then(self, *kernels: Kernel) -> KernelPlan:
        """With kernels of our own that run after the engine's: their bytes and multiply-adds count as its do."""
        return replace(self, kernels=(*self.kernels, *kernels))

    def top(self, count: int) -> list[Kernel]:
        """Those that move most, the largest first."""
        return sorted(self.kernels, key=lambda kernel: -kernel.bytes)[:count]

    def to_json(self) -> dict[str, Any]:
        stages = zip(self.stages, self.kernels, strict=True)
        return {
            "source": self.source, "proxy": self.proxy, "window": list(self.window),
            "bytes": self.bytes, "fp32_written_bytes": self.fp32_written, "macs": self.macs,
            "unknown": self.unknown, "unaccounted": list(self.unaccounted),
            "attentions": self.attentions, "fused_attentions": self.fused_attentions,
            "macs_by_type": self.macs_by_type, "bytes_by_type": self.bytes_by_type,
            "bytes_by_stage": self.bytes_by_stage,
            "kernels": [{"stage": stage, **kernel.to_json()} for stage, kernel in stages],
        }  # fmt: skip


def _summed(entries: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, count in entries:
        found[key] = found.get(key, 0) + count
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _finest(kernel: Kernel, window: tuple[int, int]) -> int | None:
    """The height of the finest map that a kernel touches, None where it touches none."""
    heights = [_height(tensor.shape, window) for tensor in (*kernel.reads, *kernel.writes)]
    return max((height for height in heights if height is not None), default=None)


def _height(shape: tuple[int, ...], window: tuple[int, int]) -> int | None:
    """Of a map (n, c, h, w), or of its h * w tokens among the axes, perhaps one more for the class.

    h and w are a whole part of the window's, rounded up where it does not go.  Of two axes that could be the tokens the
    shorter is taken: the other is as many channels by chance.
    """
    maps = [(-(-window[0] // step), -(-window[1] // step)) for step in _STEPS]
    for height, width in maps:
        if len(shape) >= 4 and shape[-2:] == (height, width) and height * width > 1:
            return height
    for height, width in reversed(maps):
        if height * width > 1 and any(size in (height * width, height * width + 1) for size in shape):
            return height
    return None


_STEPS = (1, 2, 4, 8, 14, 16, 32)  # 14: the patches of some ViTs


def _share(whole: int, part: int) -> str:
    return f"1/{round(whole / part)}"
