"""What a few images and a few timed rounds allow to say: an interval for a loss, a test for a gain in time.

The interval is the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13) over
images, because the pixels of one image are no independent witnesses; both engines are resampled by the same images.
The test is the sign test over rounds in which the engines took turns: it asks for no distribution of the times, and a
slow minute of the machine falls on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Statistic = Callable[[Counts], NDArray[np.float64]]

RESAMPLES = 1000
LEVEL = 0.95
ALPHA = 0.05


@dataclass(frozen=True)
class Interval:
    """A loss in points: of all images together, and between which bounds it lies with LEVEL confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} points ({self.low:.2f} to {self.high:.2f})"


def loss_interval(
    before: Counts, after: Counts, statistic: Statistic, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Of statistic(sum of `before`) - statistic(sum of `after`), both (N, ...) counts of the same N images, N >= 1.

    statistic: from sums (R, ...) to points (R,).  Of one image the bounds are the value itself.
    """
    count = len(before)
    weights = np.random.default_rng([seed, 0xB007]).multinomial(count, np.full(count, 1 / count), size=resamples)
    losses = statistic(_sums(weights, before)) - statistic(_sums(weights, after))
    low, high = np.quantile(losses, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    whole = np.ones((1, count), np.int64)
    value = statistic(_sums(whole, before)) - statistic(_sums(whole, after))
    return Interval(float(value[0]), float(low), float(high))


def equal_labels(sums: Counts) -> NDArray[np.float64]:
    """Percent, of (R, 2) pixels with equal labels and pixels in all."""
    return np.asarray(100 * sums[:, 0] / sums[:, 1])


def miou(sums: Counts) -> NDArray[np.float64]:
    """Percent, of (R, 3, K) pixels: hit, predicted, true.  Classes that occur nowhere are left out (metrics.py)."""
    hit, predicted, true = sums[:, 0], sums[:, 1], sums[:, 2]
    union = predicted + true - hit
    iou = np.divide(hit, union, out=np.zeros(hit.shape), where=union > 0)
    return np.asarray(100 * iou.sum(1) / np.maximum((union > 0).sum(1), 1))


def is_faster(times: Sequence[float], than: Sequence[float], by: float = 0.0) -> bool:
    """Whether `times` are shorter `than` others of the same rounds by the share `by`: one-sided sign test at ALPHA."""
    wins = sum(mine < (1 - by) * other for mine, other in zip(times, than, strict=True))
    return sign_p(wins, len(times)) <= ALPHA


def sign_p(wins: int, rounds: int) -> float:
    """P(at least `wins` of `rounds` fair coins show heads)."""
    return math.ldexp(sum(math.comb(rounds, k) for k in range(wins, rounds + 1)), -rounds)


def _sums(weights: Counts, counts: Counts) -> Counts:
    return np.asarray((weights @ counts.reshape(len(counts), -1)).reshape(len(weights), *counts.shape[1:]))
