"""One channel stands for two classes by a threshold: the C core against PyTorch's sigmoid of the mean logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engines.errors import DeployError
from engines.spec import cut_of
from engines.tiling import core
from engines.tiling.placement import Tiling

CASES = [
    # logits, tiling, image
    ((16, 16), Tiling(64, 64, 48, 48), (100, 180)),  # a quarter
    ((8, 8), Tiling(128, 128, 96, 96), (300, 200)),  # a sixteenth
    ((64, 64), Tiling(64, 64, 48, 48), (100, 70)),  # full resolution
    ((17, 23), Tiling(61, 90, 40, 70), (150, 200)),  # not a whole ratio
    ((90, 70), Tiling(60, 61, 40, 50), (99, 99)),  # logits finer than pixels
    ((16, 16), Tiling(64, 64, 10, 17), (90, 130)),  # up to twenty-odd windows over a pixel
    ((16, 16), Tiling(64, 64, 48, 48), (20, 30)),  # smaller than the window
    ((256, 256), Tiling(1024, 1024, 768, 768), (1030, 1537)),  # several chunks, odd phases
    ((16, 16), Tiling(64, 64, 48, 48, "gaussian"), (100, 180)),
    ((64, 64), Tiling(64, 64, 40, 40, "hann"), (99, 131)),
]


def _mean(logits: list[np.ndarray], tops: list[int], lefts: list[int], tiling: Tiling, size) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """(H, W) float64: windows' logits brought to the window in float32 by PyTorch, then their weighted mean."""
    window = (tiling.window_h, tiling.window_w)
    total = torch.zeros(max(size[0], window[0]), max(size[1], window[1]), dtype=torch.float64)
    count, weights = total.clone(), core.blend_weights(tiling.blend, *window)
    each = torch.ones(window, dtype=torch.float64) if weights is None else torch.from_numpy(np.outer(*weights)).double()
    for values, top, left in zip(logits, tops, lefts, strict=True):
        crop = F.interpolate(torch.from_numpy(values)[None], window, mode="bilinear", align_corners=False)[0, 0]
        place = (slice(top, top + window[0]), slice(left, left + window[1]))
        total[place] += crop.double() * each
        count[place] += each
    return (total / count)[: size[0], : size[1]]


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.9, 1e-6])
@pytest.mark.parametrize(("low", "tiling", "size"), CASES)
def test_labels_are_where_the_sigmoid_exceeds_the_threshold(
    low: tuple[int, int], tiling: Tiling, size: tuple[int, int], threshold: float
) -> None:
    rows, columns = tiling.placements(*size)
    tops, lefts = [top for top in rows for _ in columns], [left for _ in rows for left in columns]
    rng = np.random.default_rng(0)
    logits = [3 * rng.standard_normal((1, *low), dtype=np.float32) + np.float32(cut_of(threshold)) for _ in tops]
    window = (tiling.window_h, tiling.window_w)
    labels, certainty = core.stitch(
        logits, tops, lefts, window, size, weights=core.blend_weights(tiling.blend, *window), confidence=True,
        threshold=threshold,
    )  # fmt: skip
    assert certainty is not None
    mean = _mean(logits, tops, lefts, tiling, size)
    probability = mean.sigmoid()
    clear = ((mean - cut_of(threshold)).abs() > 1e-4).numpy()
    assert clear.mean() > 0.999
    expected = (probability > threshold).numpy()
    assert 0.1 < expected.mean() < 0.9
    assert np.array_equal(labels[clear], expected[clear])
    winner = np.where(labels == 1, probability.numpy(), 1 - probability.numpy())
    np.testing.assert_allclose(certainty, winner, atol=5e-5)


def test_one_window_of_full_resolution_is_pytorchs_own_comparison() -> None:
    """Nothing is interpolated or averaged, so that every pixel can be asked for, near the threshold too."""
    values = np.linspace(-3, 3, 96 * 128, dtype=np.float32).reshape(1, 96, 128)
    for threshold in (0.5, 0.3, 0.77):
        labels, certainty = core.stitch([values], [0], [0], (96, 128), (96, 128), confidence=True, threshold=threshold)
        probability = torch.from_numpy(values[0]).double().sigmoid()
        differs = labels != (probability > threshold).numpy()
        assert np.abs(probability.numpy()[differs] - threshold).max(initial=0) < 1e-7
        assert differs.sum() <= 1
        winner = np.where(labels == 1, probability, 1 - probability)
        np.testing.assert_allclose(certainty, winner, rtol=4e-7)


def test_a_large_logit_is_certain_and_the_smaller_probability_keeps_its_digits() -> None:
    values = np.float32([[[-200, -30, -5, 0, 5, 30, 200]]])
    for threshold, above in ((1e-20, 6), (0.5, 3), (1 - 1e-15, 1)):
        labels, certainty = core.stitch([values], [0], [0], (1, 7), (1, 7), confidence=True, threshold=threshold)
        assert labels.sum() == above
        probability = torch.from_numpy(values[0]).double().sigmoid().numpy()
        opposite = torch.from_numpy(-values[0]).double().sigmoid().numpy()
        np.testing.assert_allclose(certainty, np.where(labels == 1, probability, opposite), rtol=1e-6, atol=2e-38)


def test_bands_and_threads_do_not_change_a_bit() -> None:
    tiling, size = Tiling(64, 64, 48, 48, "gaussian"), (150, 210)
    rows, columns = tiling.placements(*size)
    tops, lefts = [top for top in rows for _ in columns], [left for _ in rows for left in columns]
    logits = [np.random.default_rng(i).standard_normal((1, 16, 16), dtype=np.float32) for i in range(len(tops))]
    how = {"weights": core.blend_weights("gaussian", 64, 64), "confidence": True, "threshold": 0.4}
    whole = core.stitch(logits, tops, lefts, (64, 64), size, threads=1, **how)  # type: ignore[arg-type]
    for begin, end, threads in ((0, 150, 2), (17, 60, 2), (149, 150, 1)):
        part = core.stitch(logits, tops, lefts, (64, 64), size, rows=(begin, end), threads=threads, **how)  # type: ignore[arg-type]
        assert np.array_equal(part[0], whole[0][begin:end])
        assert np.array_equal(part[1], whole[1][begin:end])  # type: ignore[index, arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_logit_is_reported(value: float) -> None:
    logits = np.zeros((1, 8, 8), np.float32)
    logits[0, 3, 5] = value
    with pytest.raises(DeployError, match="NaN or infinite"):
        core.stitch([logits], [0], [0], (32, 32), (32, 32))


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with pytest.raises(DeployError, match=r"threshold: got .*expected more than 0 and less than 1"):
        core.stitch([np.zeros((1, 8, 8), np.float32)], [0], [0], (8, 8), (8, 8), threshold=threshold)
