"""Intervals and tests against SciPy's, and what they are for: chance is not taken for a loss or a gain."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.metrics import Confusion
from pipeline.evaluation.statistics import equal_labels, is_faster, loss_interval, miou, sign_p


def _images(count: int, classes: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    truth = [rng.integers(0, classes, (20, 30)).astype(np.uint8) for _ in range(count)]

    def flipped(share: float) -> list[np.ndarray]:
        return [
            np.where(rng.random(t.shape) < share, rng.integers(0, classes, t.shape), t).astype(np.uint8) for t in truth
        ]

    return truth, flipped(0.1), flipped(0.2)


def _counts(truth: list[np.ndarray], predicted: list[np.ndarray], classes: int) -> np.ndarray:
    rows = []
    for true, got in zip(truth, predicted, strict=True):
        confusion = Confusion(classes)
        confusion.update(true, got)
        rows.append(confusion.areas)
    return np.array(rows)


def test_miou_is_that_of_the_scores() -> None:
    truth, before, _ = _images(6, 4, 0)
    truth[0][truth[0] == 3] = 255
    confusion = Confusion(7)  # three classes occur nowhere
    for true, got in zip(truth, before, strict=True):
        confusion.update(true, got)
    counts = _counts(truth, before, 7)
    wanted = confusion.scores([str(k) for k in range(7)]).miou
    assert miou(counts.sum(0)[None])[0] == pytest.approx(100 * wanted, rel=1e-12)


def test_the_interval_is_scipys() -> None:
    """Percentile bootstrap of both over images; the two draw differently, so that bounds differ a little."""
    truth, before, after = _images(30, 5, 1)
    a, b = _counts(truth, before, 5), _counts(truth, after, 5)
    ours = loss_interval(a, b, miou, resamples=20000)

    def loss(index: np.ndarray) -> float:
        return float((miou(a[index].sum(0)[None]) - miou(b[index].sum(0)[None]))[0])

    wanted = stats.bootstrap(
        (np.arange(30),), loss, n_resamples=20000, vectorized=False, method="percentile", random_state=0
    ).confidence_interval
    width = wanted.high - wanted.low
    assert ours.low == pytest.approx(wanted.low, abs=0.03 * width)
    assert ours.high == pytest.approx(wanted.high, abs=0.03 * width)
    assert ours.low < ours.value < ours.high
    assert ours == loss_interval(a, b, miou, resamples=20000)


def test_one_bad_image_widens_the_interval() -> None:
    """The mean is inside a budget of one point, and yet no promise: such an image may come again."""
    before = np.array([[1000, 1000]] * 12)
    after = np.array([[1000, 1000]] * 11 + [[900, 1000]])
    found = loss_interval(before, after, equal_labels)
    assert found.value == pytest.approx(100 / 120)
    assert found.low == 0
    assert found.high > 2
    few = loss_interval(before[-2:], after[-2:], equal_labels)
    assert (few.low, few.high) == (0, 10)
    assert loss_interval(before[-1:], after[-1:], equal_labels).high == 10


@pytest.mark.parametrize(("wins", "rounds"), [(0, 5), (4, 5), (5, 5), (11, 15), (12, 15), (9, 20)])
def test_the_sign_test_is_scipys(wins: int, rounds: int) -> None:
    wanted = stats.binomtest(wins, rounds, alternative="greater").pvalue
    assert sign_p(wins, rounds) == pytest.approx(wanted, rel=1e-12)


def test_chance_is_no_gain_and_a_slow_minute_hides_none() -> None:
    rng = np.random.default_rng(2)
    same = sum(is_faster(rng.normal(10, 1, 15), rng.normal(10, 1, 15)) for _ in range(400))
    assert same / 400 < 0.06
    minute = np.where(np.arange(15) % 4 == 0, 30, 10)  # both are three times as slow in every fourth round
    assert is_faster(0.95 * minute, minute, by=0.02)
    assert not is_faster(0.99 * minute, minute, by=0.02)
