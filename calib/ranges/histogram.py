"""A streaming histogram of |x|, and the clipping values that can be read from it.

The range is a power of two and doubles, merging bins in pairs, when a larger value comes.  Dividing by a power of two
is exact in float32, so the bin that a value falls into does not depend on the order in which values came: the
histogram is a function of the data alone, and stopping and continuing changes no bit of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engines.contract import Float32
from engines.errors import DeployError

BINS = 4096  # the largest value lies in the upper half, so that at least 2048 bins span what was seen
LEVELS = 128  # magnitudes of a symmetric int8: 0..127
METHODS = ("max", "percentile", "entropy", "mse")
_LEAST_EXPONENT = -100  # values below 2**-112 share the first bin; 1 / width stays a float32
_CANDIDATES = 384  # clipping values tried by `mse`, from largest / 128 upwards, 1.3 % apart

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass
class Histogram:
    """counts: (BINS,) int64 over [0, 2**exponent) in equal bins.  exponent: None until a value above zero came."""

    counts: Int64 = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int | None = None

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, (self.exponent or 0)) / BINS

    def update(self, magnitudes: Float32, largest: float) -> None:
        """Count |x|, finite float32 of any shape, whose maximum is `largest`.  `magnitudes` is overwritten."""
        if largest > 0:
            self._cover(largest)
        if self.exponent is None:
            self.counts[0] += magnitudes.size
            return
        magnitudes *= np.float32(1 / self.width)
        self.counts += np.bincount(magnitudes.ravel().astype(np.intp), minlength=BINS)

    def _cover(self, largest: float) -> None:
        needed = max(math.frexp(largest)[1], _LEAST_EXPONENT)  # largest < 2**needed
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(1)
            self.counts[BINS // 2 :] = 0
            self.exponent += 1


def threshold(histogram: Histogram, largest: float, method: str, percentile: float = 99.99) -> float:
    """The value at which `method` clips |x|, in (0, largest].  largest: the exact maximum of |x|, above 0."""
    if method == "max":
        return largest
    if method == "percentile":
        check_percentile(percentile)
        value = _percentile(histogram, percentile)
    elif method == "entropy":
        value = _entropy(histogram)
    elif method == "mse":
        value = _mse(histogram, largest)
    else:
        raise DeployError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    # Below one bin the histogram knows nothing, and a clipping value of zero would be no scale at all.
    return min(max(value, histogram.width), largest)


def check_percentile(percentile: float) -> None:
    if not 50 <= percentile <= 100:
        raise DeployError(f"percentile: got {percentile:g}, expected 50 to 100, such as 99.99")


def _percentile(histogram: Histogram, percentile: float) -> float:
    """`percentile` per cent of the values lie below; linear within a bin, so off by less than a bin's width."""
    total = np.cumsum(histogram.counts)
    wanted = percentile / 100 * float(total[-1])
    index = int(np.searchsorted(total, wanted))
    inside = wanted - float(total[index] - histogram.counts[index])
    return (index + inside / max(int(histogram.counts[index]), 1)) * histogram.width


def _entropy(histogram: Histogram) -> float:
    """The clipping value whose 128 levels lose the least information, in Kullback-Leibler divergence.

    S. Migacz, 8-bit Inference with TensorRT (GTC 2017): for each candidate the reference P is the clipped histogram,
    with what lies beyond counted into its last bin; Q is the same without, merged into 128 levels and spread again
    over the bins that are not empty.
    """
    filled = int(np.flatnonzero(histogram.counts)[-1]) + 1
    if filled <= LEVELS:
        return filled * histogram.width
    counts = histogram.counts[:filled].astype(np.float64)
    # Zeros (of ReLU, of padding) are exact at every scale.  Left in, their spike is worth a level of its own to the
    # divergence, and clips at an eighth of the range; pytorch-quantization levels the first bin for the same reason.
    counts[0] = min(counts[0], counts[1])
    candidates = range(LEVELS, filled + 1, max(1, filled // 1024))
    best = min(candidates, key=lambda size: divergence(counts, size))
    return best * histogram.width


def divergence(counts: Float64, size: int) -> float:
    """KL(P || Q) of clipping `counts` to its first `size` bins; infinite where Q is empty and P is not."""
    kept = counts[:size]
    reference = kept.copy()
    reference[-1] += counts[size:].sum()
    occupied = kept > 0
    starts = np.arange(LEVELS) * size // LEVELS
    sums, filled = np.add.reduceat(kept, starts), np.add.reduceat(occupied.astype(np.int64), starts)
    means = sums / np.maximum(filled, 1)
    spread = np.where(occupied, np.repeat(means, np.diff(starts, append=size)), 0.0)
    if not spread.any() or (spread[reference > 0] == 0).any():
        return math.inf
    p, q = reference[occupied] / reference.sum(), spread[occupied] / spread.sum()
    return float((p * np.log(p / q)).sum())


def _mse(histogram: Histogram, largest: float) -> float:
    """The clipping value with the least mean squared error of rounding to -127..127 levels."""
    candidates = np.geomspace(largest / 128, largest, _CANDIDATES)
    return float(min(candidates, key=lambda value: squared_error(histogram, float(value))))


def squared_error(histogram: Histogram, clip: float) -> float:
    """E[(x - q(x))**2] of symmetric int8 at `clip`, exact for values spread evenly within each bin.

    With u = x / step the error integrates to step**3 * (k / 12 + (u - k)**3 / 3), k = min(round(u), 127): each whole
    level gives step**3 / 12, and the same expression goes on where values are clipped.
    """
    step = clip / (LEVELS - 1)
    edges = np.arange(BINS + 1) * (histogram.width / step)
    level = np.minimum(np.rint(edges), LEVELS - 1)
    integral = level / 12 + (edges - level) ** 3 / 3
    share = histogram.counts / max(int(histogram.counts.sum()), 1)
    return float(share @ np.diff(integral)) * step**3 / histogram.width
