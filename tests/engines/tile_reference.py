"""The oracle of the tiling core: the same definitions in float64 numpy, slow and plain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_MODES = {"edge": "edge", "reflect": "reflect"}


def gather(
    image: NDArray[np.uint8], top: int, left: int, window: tuple[int, int], mean: Sequence[float], std: Sequence[float],
    order: Sequence[int] = (0, 1, 2), padding: str = "zero",
) -> Float64:  # fmt: skip
    """(3, h, w): the window at (top, left), normalised, then padded with zeros or from the image."""
    height, width = window
    planes = image[:, :, list(order)].astype(np.float64)
    planes = (planes - np.asarray(mean)) / np.asarray(std)
    extra = ((0, max(0, top + height - image.shape[0])), (0, max(0, left + width - image.shape[1])), (0, 0))
    planes = np.pad(planes, extra) if padding == "zero" else np.pad(planes, extra, mode=_MODES[padding])  # type: ignore[call-overload]
    return np.ascontiguousarray(planes[top : top + height, left : left + width].transpose(2, 0, 1))


def resize(logits: NDArray[np.floating], size: tuple[int, int]) -> Float64:
    """Bilinear, half-pixel centres, clamped at the edges: (K, h, w) -> (K, *size)."""
    rows = _axis(logits.shape[1], size[0]) @ logits.astype(np.float64)
    resized: Float64 = rows @ _axis(logits.shape[2], size[1]).T
    return resized


def scores(
    logits: Sequence[NDArray[np.floating]], tops: Sequence[int], lefts: Sequence[int], window: tuple[int, int],
    image_size: tuple[int, int], weights: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
) -> Float64:  # fmt: skip
    """(K, H, W): weighted mean over windows of their logits, resized to the window.  NaN where no window lies."""
    height, width = image_size
    canvas = (max(height, max(tops) + window[0]), max(width, max(lefts) + window[1]))
    total = np.zeros((logits[0].shape[0], *canvas))
    weight = np.zeros(canvas)
    each = np.ones(window) if weights is None else np.outer(weights[0], weights[1])
    for values, top, left in zip(logits, tops, lefts, strict=True):
        total[:, top : top + window[0], left : left + window[1]] += resize(values, window) * each
        weight[top : top + window[0], left : left + window[1]] += each
    with np.errstate(invalid="ignore"):
        mean: Float64 = (total / weight)[:, :height, :width]
    return mean


def confidence(mean_logits: Float64) -> Float64:
    """(K, H, W) -> (H, W): softmax probability of the largest."""
    shifted = np.exp(mean_logits - mean_logits.max(0))
    probability: Float64 = 1 / shifted.sum(0)
    return probability


def _axis(size: int, out: int) -> Float64:
    """(out, size): row i holds the weights of the inputs in output i."""
    position = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    low = np.minimum(position.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out), low), 1 - (position - low))
    np.add.at(matrix, (np.arange(out), high), position - low)
    return matrix
