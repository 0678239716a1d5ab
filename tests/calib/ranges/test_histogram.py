"""Clipping values against numpy on the whole data, ONNX Runtime's entropy calibration, and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from calib.ranges.histogram import BINS, METHODS, Histogram, divergence, squared_error, threshold
from engines.errors import DeployError


def _fill(values: np.ndarray, parts: int = 7) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values.astype(np.float32), parts):
        magnitudes = np.abs(part)
        histogram.update(magnitudes, float(magnitudes.max()))
    return histogram


def _data(kind: str, count: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(len(kind))
    values = {
        "normal": lambda: rng.standard_normal(count),
        "laplace": lambda: 0.01 * rng.laplace(size=count),
        "outliers": lambda: np.concatenate([rng.standard_normal(count - 20), 60 * rng.standard_normal(20)]),
        "relu": lambda: np.maximum(rng.standard_normal(count), 0) * 1e4,
    }[kind]()
    return values.astype(np.float32)


KINDS = ("normal", "laplace", "outliers", "relu")


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_numpys_in_any_order(kind: str) -> None:
    values = _data(kind)
    histogram = _fill(np.sort(np.abs(values)))  # ascending: the range doubles as often as it can
    edges = np.arange(BINS + 1) * histogram.width
    np.testing.assert_array_equal(histogram.counts, np.histogram(np.abs(values).astype(np.float64), edges)[0])
    backwards = _fill(np.sort(np.abs(values))[::-1], 3)
    np.testing.assert_array_equal(histogram.counts, backwards.counts)
    assert histogram.exponent == backwards.exponent


@pytest.mark.parametrize("largest", [1e-44, 2.0**-130, 1.0, 2.0**20, 3.4e38])
def test_extreme_ranges(largest: float) -> None:
    values = np.array([0, largest, -largest / 2], np.float32)
    histogram = _fill(values, 3)
    assert histogram.counts.sum() == 3
    assert 0 < threshold(histogram, float(np.float32(largest)), "mse") <= largest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(kind: str, percentile: float) -> None:
    values = np.abs(_data(kind))
    histogram = _fill(values)
    ours = threshold(histogram, float(values.max()), "percentile", percentile)
    # numpy interpolates between two neighbours in the sorted data, so its neighbours bound ours, give or take a bin.
    lower, upper = (np.percentile(values, percentile, method=m) for m in ("lower", "higher"))
    assert lower - histogram.width <= ours <= upper + histogram.width


def _migacz(counts: np.ndarray) -> int:
    """The bins that 128 levels should keep: Migacz's pseudo-code, one bin at a time."""
    best, best_size = math.inf, 0
    for size in range(128, len(counts) + 1):
        reference = [float(c) for c in counts[:size]]
        reference[-1] += float(counts[size:].sum())
        spread = [0.0] * size
        for level in range(128):
            bins = range(level * size // 128, (level + 1) * size // 128)
            filled = [b for b in bins if counts[b]]
            for b in filled:
                spread[b] = sum(float(counts[f]) for f in filled) / len(filled)
        total, other = sum(reference), sum(spread)
        if any(r and not s for r, s in zip(reference, spread, strict=True)) or not other:
            continue
        pairs = [(r / total, s / other) for r, s in zip(reference, spread, strict=True) if r]
        loss = sum(p * math.log(p / q) for p, q in pairs)
        if loss < best:
            best, best_size = loss, size
    return best_size


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_follows_the_published_method(kind: str) -> None:
    values = np.abs(_data(kind, 20_000))
    counts = np.histogram(values, 300)[0].astype(np.float64)
    losses = [divergence(counts, size) for size in range(128, 301)]
    assert 128 + int(np.argmin(losses)) == _migacz(counts)


@pytest.mark.parametrize("kind", ["normal", "laplace", "outliers"])
def test_entropy_agrees_with_onnx_runtime(kind: str) -> None:
    """The same counts, mirrored, for both.  ONNX Runtime gives the bins that do not divide evenly to its last level
    and so leans to whole multiples: within a fifth, and not better by the divergence."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    values = np.abs(_data(kind))
    counts = np.histogram(values, 512, range=(0, float(values.max())))[0]
    mirrored, edges = np.concatenate([counts[::-1], [0], counts]), np.arange(1026) - 512.5
    collector = calibrate.HistogramCollector("entropy", True, 1025, 255, 99.99, "same")
    low, high = collector.get_entropy_threshold((mirrored, edges, np.float32(-513), np.float32(513)), 255)
    theirs = int(max(-float(low), float(high)))
    losses = [divergence(counts.astype(np.float64), size) for size in range(128, 513)]
    ours = 128 + int(np.argmin(losses))
    assert losses[ours - 128] <= losses[theirs - 128]
    assert ours == pytest.approx(theirs, rel=0.2)


def test_entropy_is_not_deceived_by_zeros() -> None:
    """Half of the values exactly zero: any scale holds them, so the clipping value is that of the other half."""
    values = _data("relu")
    clip, dense = (
        threshold(_fill(part), float(values.max()), "entropy") for part in (values, values[values > 0])
    )  # fmt: skip
    assert clip == pytest.approx(dense, rel=0.02)
    assert clip > values.max() / 2


def _round_trip_error(values: np.ndarray, clip: float) -> float:
    step = clip / 127
    return float(np.square(values - np.clip(np.rint(values / step), -127, 127) * step).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_within_a_percent_of_the_best_of_all_clips(kind: str) -> None:
    values = _data(kind).astype(np.float64)
    largest = float(np.abs(values).max())
    histogram = _fill(values)
    ours = threshold(histogram, float(np.float32(largest)), "mse")
    grid = min(np.linspace(largest / 100, largest, 100), key=lambda clip: _round_trip_error(values, clip))
    around = (max(grid - largest / 50, largest / 200), min(grid + largest / 50, largest))
    best = minimize_scalar(lambda clip: _round_trip_error(values, clip), bounds=around, method="bounded")
    assert _round_trip_error(values, ours) <= 1.01 * best.fun
    for clip in (ours, largest, largest / 3):
        assert squared_error(histogram, clip) == pytest.approx(_round_trip_error(values, clip), rel=0.02)


def test_max_is_the_maximum() -> None:
    values = np.abs(_data("normal"))
    assert threshold(_fill(values), float(values.max()), "max") == float(values.max())


@pytest.mark.parametrize("method", METHODS)
def test_no_method_clips_nearly_empty_tensors_at_zero(method: str) -> None:
    values = np.zeros(100_000, np.float32)
    values[5] = 3
    assert 0 < threshold(_fill(values), 3.0, method) <= 3


@pytest.mark.parametrize(("method", "percentile"), [("median", 99), ("percentile", 12), ("percentile", math.nan)])
def test_unknown_methods_are_refused(method: str, percentile: float) -> None:
    with pytest.raises(DeployError, match="expected"):
        threshold(_fill(np.ones(9)), 1.0, method, percentile)
