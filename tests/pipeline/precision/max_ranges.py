"""Ranges of the layers' inputs on given windows, by maximum: for models that bring their own scenes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from calib.ranges.ranges import Ranges, TensorRange
from engines.contract import Float32
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import image
from pipeline.precision.extremes import tensors


def ranges_from_windows(graph: OnnxGraph, windows: Sequence[Float32]) -> Ranges:
    """windows: (1, 3, H, W) each.  Tensors that are zero everywhere get no range."""
    readers = [node for node in graph.model.graph if node.op_type in ("Conv", "MatMul", "Gemm")]
    axes = {str(node.inputs[0].name): -3 if node.op_type == "Conv" else -1 for node in readers}
    stats: dict[str, _Sums] = {}
    source = str(image(graph.model).name)
    for window in windows:
        first = [(source, window)] if source in axes else []
        for name, value in chain(first, tensors(graph, window, set(axes))):
            stats.setdefault(name, _Sums()).add(value, axes[name])
    digest = hashlib.sha256(b"".join(window.tobytes() for window in windows)).hexdigest()
    measured = {name: sums.range() for name, sums in stats.items() if sums.peak is not None and sums.peak.max() > 0}
    return Ranges(measured, "max", len(windows), len(windows), 0, digest, graph_sha256(graph.model))


class _Sums:
    def __init__(self) -> None:
        self.low, self.high, self.squares, self.count = np.inf, -np.inf, 0.0, 0
        self.peak: Float32 | None = None
        self.mean: list[NDArray[np.float64]] = []

    def add(self, value: Float32, axis: int) -> None:
        others = tuple(i for i in range(value.ndim) if i != axis % value.ndim)
        peak = np.abs(value).max(axis=others)
        self.peak = peak if self.peak is None else np.maximum(self.peak, peak)
        self.mean.append(value.mean(axis=others, dtype=np.float64))
        self.low, self.high = min(self.low, float(value.min())), max(self.high, float(value.max()))
        self.squares += float(np.square(value, dtype=np.float64).sum())
        self.count += value.size

    def range(self) -> TensorRange:
        peak = self.peak if self.peak is not None else np.zeros(1, np.float32)
        mean = tuple(np.mean(self.mean, axis=0).tolist())
        rms = (self.squares / self.count) ** 0.5
        return TensorRange(float(peak.max()), self.low, self.high, rms, tuple(peak.tolist()), mean)
