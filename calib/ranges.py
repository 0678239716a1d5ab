"""Measured ranges of a graph's tensors: what calibration produces and INT8 lowering consumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorRange:
    """amax: the clipping threshold that the method chose.  low, high: the extremes that were seen."""

    amax: float
    low: float
    high: float
    rms: float
    channel_amax: tuple[float, ...] | None = None
    channel_mean: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Ranges:
    tensors: Mapping[str, TensorRange]
    method: str
    images: int
    windows: int
    seed: int
    dataset_sha256: str
    graph_sha256: str
