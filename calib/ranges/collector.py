"""Statistics of many tensors, window by window, in memory that does not grow with the number of windows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calib.ranges.histogram import BINS, Histogram, threshold
from calib.ranges.ranges import TensorRange
from engines.contract import Float32
from engines.errors import DeployError
from engines.files import DAMAGED_NPZ, replacing

BLOCK = 1 << 16  # values looked at together: a quarter megabyte, which stays in the cache between passes
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Observed:
    """A tensor to look at.  channel_axis: counted from the end (-1 for Linear, -3 for Conv2d), or None for no channels.

    histogram: False keeps only low, high and rms.
    """

    name: str
    channel_axis: int | None = None
    histogram: bool = True


@dataclass
class Statistics:
    """What is kept of one tensor: a histogram of |x|, exact extremes, and sums in float64."""

    observed: Observed
    histogram: Histogram = field(default_factory=Histogram)
    low: float = math.inf
    high: float = -math.inf
    squares: float = 0.0
    count: int = 0
    windows: int = 0
    channel_amax: Float32 | None = None
    channel_sum: NDArray[np.float64] | None = None

    def update(self, tensor: Float32) -> None:
        """Add one window's values.  Raises DeployError when some are NaN or infinite, having added part of them."""
        axis = self.observed.channel_axis
        if axis is not None and self.channel_amax is None:
            self.channel_amax = np.zeros(tensor.shape[axis], np.float32)
            self.channel_sum = np.zeros(tensor.shape[axis])
        for block, channels, along in _blocks(tensor, axis):
            low, high = float(block.min()), float(block.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise DeployError("got NaN or infinity")
            self.low, self.high = min(self.low, low), max(self.high, high)
            magnitudes = np.abs(block)
            if self.channel_amax is not None and self.channel_sum is not None:
                part = self.channel_amax[channels]
                np.maximum(part, magnitudes.max(along), out=part)
                self.channel_sum[channels] += block.sum(along)
            # Scaled, so that squares of large float32 do not overflow; a power of two changes no digit.
            scale = math.ldexp(1.0, -math.frexp(max(-low, high))[1]) if max(-low, high) > 1e15 else 1.0
            self.squares += float(np.square(magnitudes * np.float32(scale)).sum()) / scale**2
            if self.observed.histogram:
                self.histogram.update(magnitudes, max(-low, high))
        self.count += tensor.size
        self.windows += 1

    def range(self, method: str, percentile: float) -> TensorRange:
        """Raises DeployError when a tensor with a histogram was zero throughout: nothing tells its scale."""
        largest = max(-self.low, self.high)
        if not self.observed.histogram:
            amax = max(largest, _FLOAT32_TINY)
        elif largest > 0:
            amax = threshold(self.histogram, largest, method, percentile)
        else:
            raise DeployError(
                f"calibration: tensor {self.observed.name} is zero in all {self.windows} window(s), so that no scale "
                "can be drawn from it; give photographs of what the model will see"
            )
        rms = math.sqrt(self.squares / max(self.count, 1))
        amaxes = means = None
        if self.channel_amax is not None and self.channel_sum is not None:
            amaxes = tuple(_rounded(value) for value in self.channel_amax)
            means = tuple(_rounded(value) for value in self.channel_sum * (self.channel_amax.size / self.count))
        return TensorRange(
            _rounded(amax), _rounded(self.low), high=_rounded(self.high), rms=_rounded(rms), channel_amax=amaxes,
            channel_mean=means,
        )  # fmt: skip

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        numbers = [self.low, self.high, self.squares]
        exponent = self.histogram.exponent
        arrays: dict[str, NDArray[Any]] = {
            "numbers": np.array(numbers),
            "counts": np.array([self.count, self.windows, -1 if exponent is None else 1, exponent or 0]),
        }
        if self.observed.histogram:
            arrays["histogram"] = self.histogram.counts
        if self.channel_amax is not None and self.channel_sum is not None:
            arrays |= {"channel_amax": self.channel_amax, "channel_sum": self.channel_sum}
        return arrays

    @classmethod
    def restored(cls, observed: Observed, arrays: Mapping[str, NDArray[Any]]) -> Statistics:
        """Inverse of `to_arrays`.  Raises KeyError, ValueError or TypeError when it cannot be."""
        low, high, squares = (float(value) for value in arrays["numbers"])
        count, windows, known, exponent = (int(value) for value in arrays["counts"])
        counts = arrays["histogram"] if observed.histogram else np.zeros(BINS, np.int64)
        amaxes, sums = arrays.get("channel_amax"), arrays.get("channel_sum")
        if counts.shape != (BINS,) or counts.dtype != np.int64:
            raise ValueError(f"got a histogram {counts.shape} {counts.dtype}")
        if (None if amaxes is None else amaxes.shape) != (None if sums is None else sums.shape):
            raise ValueError("got statistics of some channels")
        return cls(
            observed, Histogram(counts, exponent if known > 0 else None), low=low, high=high, squares=squares,
            count=count, windows=windows, channel_amax=amaxes, channel_sum=sums,
        )  # fmt: skip


class Collector:
    """Statistics of `observed`, which come in graph order.  done: windows finished, by group of tensors.

    identity: what the state on disk must have been made from to be continued (digests, seed, places).
    """

    def __init__(self, observed: Sequence[Observed], identity: Mapping[str, Any], groups: int = 1) -> None:
        self.statistics = {item.name: Statistics(item) for item in observed}
        self.done = [0] * groups
        described = [[item.name, item.channel_axis, item.histogram] for item in observed]
        self._identity = json.dumps({**identity, "bins": BINS, "groups": groups, "tensors": described})

    def update(self, tensors: Mapping[str, Float32], source: str) -> None:
        """Add one window's tensors, in graph order.  source: the image, for errors.

        Raises DeployError naming the first tensor that holds NaN or infinity.
        """
        for name, tensor in tensors.items():
            try:
                self.statistics[name].update(tensor)
            except DeployError as error:
                raise DeployError(
                    f"calibration: tensor {name}, the first in the graph's order: {error} on {source}, expected finite "
                    "activations; check the checkpoint, --mean and --std"
                ) from error

    def ranges(self, method: str, percentile: float = 99.99) -> dict[str, TensorRange]:
        """Every tensor's range, all from the same histograms."""
        return {name: item.range(method, percentile) for name, item in self.statistics.items()}

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        arrays = {"identity": np.array(self._identity), "done": np.array(self.done)}
        for index, item in enumerate(self.statistics.values()):
            arrays |= {f"{index}.{key}": value for key, value in item.to_arrays().items()}
        with replacing(path, "calibration state") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # a key of ours is never allow_pickle

    def resume(self, path: Path) -> str | None:
        """Continue from a state that `save` wrote.  Returns None, or why it cannot be continued (nothing changes)."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                if str(data["identity"]) != self._identity:
                    return "it is of another model, data set, seed or number of windows"
                states = [
                    {key.partition(".")[2]: data[key] for key in data.files if key.startswith(f"{index}.")}
                    for index in range(len(self.statistics))
                ]
                done = [int(value) for value in data["done"]]
            restored = [
                Statistics.restored(item.observed, state)
                for item, state in zip(self.statistics.values(), states, strict=True)
            ]
        except DAMAGED_NPZ as error:
            return f"it is damaged ({' '.join(str(error).split())[:80]})"
        if len(done) != len(self.done) or min(done) < 0:
            return f"it is damaged (got {done} windows of {len(self.done)} groups)"
        self.statistics, self.done = dict(zip(self.statistics, restored, strict=True)), done
        return None


def _blocks(tensor: Float32, axis: int | None) -> Iterator[tuple[Float32, slice, int]]:
    """The tensor in parts of about BLOCK values: (rows, columns), which channels they are, the axis to reduce."""
    values = np.ascontiguousarray(tensor, np.float32)
    if axis is None:
        flat = values.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[None, start : start + BLOCK], slice(0, 0), 1
        return
    channels = values.shape[axis]
    inner = math.prod(values.shape[axis:][1:])
    if inner == 1:
        rows = values.reshape(-1, channels)
        step = max(1, BLOCK // channels)
        for start in range(0, len(rows), step):
            yield rows[start : start + step], slice(None), 0
        return
    step = max(1, BLOCK // inner)
    for outer in values.reshape(-1, channels, inner):
        for start in range(0, channels, step):
            yield outer[start : start + step], slice(start, start + step), 1


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")
