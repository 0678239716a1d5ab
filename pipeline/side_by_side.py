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


def median_ms(sessions: Sequence[Session], window: Float32, rounds: int = ROUNDS) -> list[float]:
    """Milliseconds that each session takes for one window (1, 3, H, W): medians, one warm-up, rounds interleaved."""
    times: list[list[float]] = [[] for _ in sessions]
    for round_ in range(rounds + 1):
        for session, measured in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            session.run(window)
            if round_:
                measured.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(measured) for measured in times]
