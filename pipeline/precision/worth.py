"""Whether 8 bits pay on a GPU: the roofline of what the compiler made of the graph, beside that in halves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.backends.tensorrt.backend import TensorRTFamily
from engines.contract import Backend
from engines.errors import DeployError
from engines.roofline.boards import Board
from engines.roofline.floor import floor_on
from engines.roofline.kernels import KernelPlan
from pipeline.graph.proto import stored
from pipeline.precision.interface import interface_for


@dataclass(frozen=True)
class Worth:
    """ms: the floor on `board`, of this precision and of the half type.  A lower bound of each, never a time."""

    precision: str
    half: str
    board: str
    source: str
    ms: float
    half_ms: float
    bytes: int
    half_bytes: int
    fp32_written: int

    @property
    def pays(self) -> bool:
        return self.ms < self.half_ms

    def __str__(self) -> str:
        text = (
            f"{self.half_ms:.2f} ms in {self.half}, {self.ms:.2f} in {self.precision} at least on {self.board}; "
            f"{self.half_bytes / 1e6:.0f} -> {self.bytes / 1e6:.0f} MB ({self.source})"
        )
        return text if self.pays else f"{text}: {self.precision} does not pay there, use --precision {self.half}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pays": self.pays}


def tells(backend: Backend) -> bool:
    """Whether the compiler of `backend` says what kernels it makes, without a GPU."""
    return isinstance(backend, TensorRTFamily) and backend.flavour.ahead


def kernel_plan(backend: Backend, model: ir.Model) -> KernelPlan:
    """Of a backend that `tells`, given `model` as its bundles hold it.  Raises DeployError."""
    assert isinstance(backend, TensorRTFamily)
    with stored(interface_for(backend, model)) as path:
        return backend.kernel_plan(path)


def floor_ms(plan: KernelPlan, board: Board) -> float:
    """By the roofline.  Raises DeployError where the board lacks a type that the kernels compute in."""
    floor = floor_on(board, plan)
    if floor.roofline is None:
        raise DeployError(f"--board {board.name}: it has no tensor cores for {', '.join(floor.lacks)}; give another")
    return floor.roofline


def against(
    backend: Backend, model: Path, half: ir.Model, board: Board, precision: str, half_type: str
) -> Worth:  # fmt: skip
    """The ONNX file `model`, in 8 bits, beside `half`, the same network in a half type.  Raises DeployError."""
    assert isinstance(backend, TensorRTFamily)
    eight, sixteen = backend.kernel_plan(model), kernel_plan(backend, half)
    return Worth(
        precision, half_type, board=board.name, source=eight.source, ms=floor_ms(eight, board),
        half_ms=floor_ms(sixteen, board), bytes=eight.bytes, half_bytes=sixteen.bytes, fp32_written=eight.fp32_written,
    )  # fmt: skip
