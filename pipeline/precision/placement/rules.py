"""What an 8-bit layer needs and costs on one target; a file here for each.

8 bits pay where the bytes that a layer reads shrink, or its multiply-adds get faster, by more than the compiler's
detours cost: a map that is quantised by a kernel of its own, an activation function that no longer fuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Placement:
    """source: where the rules are from, in words.

    fine: whether a layer's weight has one scale an output channel; otherwise it has one for all.
    refused: why a layer is not quantised to int8 or fp8 there whatever it saves, or "".
    epilogues: whether 8-bit kernels take bias, activation function and sum along and can write 8 bits, as those for
    halves do; None where cost decides nothing, as on a CPU, whose time is measured.
    attention: the types in which a whole attention, softmax(QK)V, is one kernel.
    board: the one that is assumed where no GPU is at hand; "" where none is.
    """

    source: str
    fine: Callable[[ir.Node], bool]
    refused: Callable[[ir.Node, str], str]
    epilogues: bool | None = None
    attention: tuple[str, ...] = ()
    board: str = ""


def always(node: ir.Node) -> bool:
    return True


def nothing(node: ir.Node, kind: str) -> str:
    return ""
