"""The roofline: no kernel ends before its bytes have moved, nor before its multiply-adds are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.roofline.boards import BOARDS, Board
from engines.roofline.kernels import Kernel, KernelPlan


@dataclass(frozen=True)
class Floor:
    """A lower bound on the time of one run, in milliseconds; never a latency.

    memory: all bytes at the board's bandwidth.  arithmetic: all multiply-adds at its dense peaks.  roofline: of each
    kernel the larger of the two, summed.  None, all three, where the board has no tensor cores for a type: `lacks`.
    """

    board: str
    memory: float | None
    arithmetic: float | None
    roofline: float | None
    lacks: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Times with their unit in the name."""
        times = {f"{name}_ms": getattr(self, name) for name in ("memory", "arithmetic", "roofline")}
        return {"board": self.board, **times, "lacks": list(self.lacks)}


def floor_on(board: Board, plan: KernelPlan) -> Floor:
    """Launches, caches that miss, elementwise arithmetic and clocks below the peak are not in it.

    What may make a real run faster than this: a cache that keeps a map from one kernel to the next.
    """
    lacks = board.lacks(plan.macs_by_type)
    if lacks:
        return Floor(board.name, None, arithmetic=None, roofline=None, lacks=lacks)
    memory = [memory_ms(board, kernel) for kernel in plan.kernels]
    arithmetic = [arithmetic_ms(board, kernel) for kernel in plan.kernels]
    larger = sum(map(max, memory, arithmetic))
    return Floor(board.name, sum(memory), arithmetic=sum(arithmetic), roofline=larger)


def floors(plan: KernelPlan, boards: Sequence[Board] = BOARDS) -> list[Floor]:
    return [floor_on(board, plan) for board in boards]


def memory_ms(board: Board, kernel: Kernel) -> float:
    return kernel.bytes / board.gb_per_s / 1e6


def arithmetic_ms(board: Board, kernel: Kernel) -> float:
    """0 of a kernel whose multiply-adds are not known: the sum stays a lower bound."""
    return 2 * kernel.macs / board.peaks[kernel.computes_in] / 1e9 if kernel.macs else 0.0
