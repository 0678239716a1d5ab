"""What each rewrite gains on this machine: the engine before and after it, measured side by side."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx

from engines.base import Backend, BuildConfig, Float32, Session
from pipeline.graph import OnnxGraph

ROUNDS = 5


def time_stages(
    start: OnnxGraph, stages: Sequence[OnnxGraph], backend: Backend, config: BuildConfig, window: Float32
) -> OnnxGraph:
    """The last stage, with `ms_saved` in the history of each rule that changed something.

    A stage is compared with the one before it: two engines at a time, rounds interleaved, medians, one warm-up.
    window: (1, 3, H, W) float32.
    """
    before, final = start, stages[-1]
    history = list(final.history)
    offset = len(start.history)
    for index, stage in enumerate(stages):
        if stage.history[-1].places:
            history[offset + index] = replace(
                stage.history[-1], ms_saved=_difference(before, stage, backend, config, window)
            )
            before = stage
    return replace(final, history=tuple(history))


def _difference(a: OnnxGraph, b: OnnxGraph, backend: Backend, config: BuildConfig, window: Float32) -> float:
    """Milliseconds by which one window is faster in `b` than in `a`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions: list[Session] = []
        for graph in (a, b):
            onnx.save(graph.model, folder / "stage.onnx")
            sessions.append(stack.enter_context(backend.load(backend.build(folder / "stage.onnx", config), config)))
        times: tuple[list[float], list[float]] = ([], [])
        for round_ in range(ROUNDS + 1):
            for session, measured in zip(sessions, times, strict=True):
                begin = time.perf_counter()
                session.run(window)
                if round_:
                    measured.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times[0]) - statistics.median(times[1])
