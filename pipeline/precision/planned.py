"""In place of an engine that cannot run here: its logits by emulation, its time by the roofline of a board."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.contract import Backend, Float32, Session
from engines.roofline.boards import Board
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, open_onnx
from pipeline.graph.tail import before_tail
from pipeline.graph.tail.ending import DecoderTail
from pipeline.precision.worth import floor_ms, kernel_plan
from pipeline.side_by_side import rounds_ms as timed_rounds


@dataclass(frozen=True)
class Planned:
    """A `Session`: the lowered graph with every tensor rounded, in ONNX Runtime.  floor: ms of one window at least."""

    runner: Any
    floor: float = 0.0

    def run(self, windows: Float32) -> Float32:
        name = self.runner.get_inputs()[0].name
        each = [self.runner.run(None, {name: windows[i : i + 1]})[0] for i in range(len(windows))]
        return np.concatenate(each)


@contextmanager
def emulated(graph: OnnxGraph) -> Iterator[Session]:
    yield Planned(open_onnx(emulate(graph).model))


@contextmanager
def planned(graph: OnnxGraph, backend: Backend, board: Board, ending: DecoderTail | None) -> Iterator[Session]:
    """ending: where the engine would end.  Raises DeployError where the compiler refuses the graph or the board lacks a
    type of it.
    """
    floor = floor_ms(kernel_plan(backend, before_tail(graph, ending)), board)
    yield Planned(open_onnx(emulate(graph).model), floor)


def rounds_ms(sessions: Sequence[Session], window: Float32, count: int) -> list[list[float]]:
    """As `pipeline.side_by_side.rounds_ms`; of sessions that are planned the floor of each, in every round."""
    floors = [session.floor for session in sessions if isinstance(session, Planned)]
    if len(floors) == len(sessions):
        return [[floor] * count for floor in floors]
    return timed_rounds(sessions, window, count)
