"""What each rewrite gains on this machine: the engine before and after it, measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.contract import Backend, BuildConfig, Float32
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.side_by_side import compiled, median_ms


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
