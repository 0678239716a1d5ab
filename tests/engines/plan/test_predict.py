"""What is predicted of a frame, against counting and against what the runtime reports."""

from __future__ import annotations

import numpy as np
import pytest

from engines.plan.predict import Costs, covered, predict
from engines.tiling.placement import Tiling

COSTS = Costs(
    "here", batch=1, gather_ms=2.0, engine_ms=100.0, stitch_ms=10.0, whole=1.1, peak_bytes=200_000_000,
    held_bytes=1_000_000, measured="2026-11-26T12:00:00+00:00",
)  # fmt: skip
LOGITS = (1, 5, 16, 24)
TILING = Tiling(64, 96, 48, 64)


def test_costs_survive_json() -> None:
    assert Costs.from_json(COSTS.to_json()) == COSTS


@pytest.mark.parametrize("size", [(64, 96), (100, 200), (30, 40), (64, 500), (333, 77)])
def test_pixels_are_counted_as_often_as_windows_label_them(size: tuple[int, int]) -> None:
    tops, lefts = TILING.placements(*size)
    count = np.zeros(size, int)
    for top in tops:
        for left in lefts:
            count[top : top + 64, left : left + 96] += 1
    assert covered(TILING, size) == count.sum()


def test_a_prediction_adds_up() -> None:
    found = predict(COSTS, TILING, LOGITS, (100, 200))
    assert (found.rows, found.columns, found.windows) == (2, 3, 6)
    assert (found.gather_ms, found.engine_ms) == (12, 600)
    assert found.stitch_ms == pytest.approx(10 * covered(TILING, (100, 200)) / 1e6)
    assert found.frame_ms == pytest.approx(1.1 * (612 + found.stitch_ms))


@pytest.mark.parametrize(("batch", "runs"), [(2, 3), (4, 2), (6, 1), (8, 1)])
def test_batches_go_on_in_the_next_row(batch: int, runs: int) -> None:
    """Of two rows of three windows; the last batch is filled up."""
    costs = Costs(**{**COSTS.to_json(), "batch": batch})
    assert predict(costs, TILING, LOGITS, (100, 200)).engine_ms == runs * 100


def test_memory_is_the_image_two_masks_and_the_logits_that_are_held() -> None:
    found = predict(COSTS, TILING, LOGITS, (1000, 2000))
    rows = TILING.window_rows(1000, 2000)
    held = max(len(row.held) for row in rows) * len(rows[0].lefts) * 5 * 16 * 24 * 4
    assert found.peak_bytes - (200_000_000 - 1_000_000) == 5 * 1000 * 2000 + held
