"""Engines timed side by side, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from engines.contract import Backend, BuildConfig, Float32, Session
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import stored

ROUNDS = 5


@contextmanager
def compiled(graph: OnnxGraph, backend: Backend, config: BuildConfig) -> Iterator[Session]:
    """An engine of `graph` for the time being.  Raises DeployError."""
    with stored(graph.model) as path:
        blob = backend.build(path, config)
        # The graph is there for engines that take their weights from it.
        with backend.load(blob, replace(config, model=path)) as session:
            yield session


def rounds_ms(sessions: Sequence[Session], window: Float32, rounds: int = ROUNDS) -> list[list[float]]:
    """Milliseconds of each session and round for one window (1, 3, H, W); one warm-up, rounds interleaved."""
    times: list[list[float]] = [[] for _ in sessions]
    for round_ in range(rounds + 1):
        for session, measured in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            session.run(window)
            if round_:
                measured.append(1e3 * (time.perf_counter() - begin))
    return times


def median_ms(sessions: Sequence[Session], window: Float32, rounds: int = ROUNDS) -> list[float]:
    """The medians of `rounds_ms`."""
    return [statistics.median(measured) for measured in rounds_ms(sessions, window, rounds)]


def time_stages(
    start: OnnxGraph, stages: Sequence[OnnxGraph], backend: Backend, config: BuildConfig, window: Float32
) -> OnnxGraph:
    """The last stage, with `ms_saved` in the history of each rule that changed something.

    Each stage is compared with the one before it, two engines at a time.  window: (1, 3, H, W) float32.
    """
    before, final = start, stages[-1]
    history = list(final.history)
    offset = len(start.history)
    for index, stage in enumerate(stages):
        if stage.history[-1].places:
            with compiled(before, backend, config) as old, compiled(stage, backend, config) as new:
                slower, faster = median_ms([old, new], window)
            history[offset + index] = replace(stage.history[-1], ms_saved=slower - faster)
            before = stage
    return replace(final, history=tuple(history))
