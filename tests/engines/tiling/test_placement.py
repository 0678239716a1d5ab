"""Window placement against the loop in mmsegmentation's slide_inference."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engines.errors import DeployError
from engines.tiling.placement import Tiling


def _mmseg(length: int, crop: int, stride: int) -> list[int]:
    starts = []
    for i in range(max(length - crop + stride - 1, 0) // stride + 1):
        end = min(i * stride + crop, length)
        starts.append(max(end - crop, 0))
    return starts


def test_placements_equal_mmsegmentation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        crop = int(rng.integers(1, 100))
        stride = int(rng.integers(1, crop + 1))
        height, width = (int(v) for v in rng.integers(1, 400, 2))
        tops, lefts = Tiling(crop, crop, stride, stride).placements(height, width)
        assert tops == _mmseg(height, crop, stride)
        assert lefts == _mmseg(width, crop, stride)


def test_every_pixel_lies_in_a_window() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        crop = int(rng.integers(1, 50))
        length = int(rng.integers(1, 300))
        seen = np.zeros(length, bool)
        for start in Tiling(crop, crop, int(rng.integers(1, crop + 1)), 1).placements(length, 1)[0]:
            seen[start : start + crop] = True
        assert seen.all()


def test_a_cityscapes_frame_has_three_windows() -> None:
    assert Tiling(1024, 1024, 768, 768).placements(1024, 2048) == ([0], [0, 768, 1024])


def test_round_trips_through_json() -> None:
    tiling = Tiling(512, 1024, 384, 768, blend="hann", padding="reflect")
    assert Tiling.from_json(json.loads(json.dumps(tiling.to_json()))) == tiling


@pytest.mark.parametrize(
    "arguments",
    [
        (64, 64, 65, 64),
        (64, 64, 64, 0),
        (0, 64, 1, 1),
        (64, 64, 1, 1, "cosine"),
        (64, 64, 1, 1, "hann", "x"),
        (64.0, 64, 1, 1),
        ("64", 64, 1, 1),
        (True, 64, 1, 1),
    ],
)
def test_impossible_tilings_are_refused(arguments: tuple) -> None:
    with pytest.raises(DeployError, match="expected"):
        Tiling(*arguments)


@pytest.mark.parametrize("data", [{}, {"window_h": 64}, {"window_h": 1, "window_w": 1, "stride_h": 1, "steps": 1}, [1]])
def test_json_of_another_shape_is_refused(data: object) -> None:
    with pytest.raises(DeployError, match=r"tiling: .*build the bundle again"):
        Tiling.from_json(data)  # type: ignore[arg-type]


def test_an_image_has_at_least_a_pixel() -> None:
    with pytest.raises(DeployError, match="at least one pixel"):
        Tiling(64, 64, 48, 48).placements(0, 100)


@pytest.mark.parametrize("height", [1, 63, 64, 65, 111, 112, 113, 300, 1000])
@pytest.mark.parametrize("stride", [1, 20, 48, 64])
def test_the_schedule_finishes_every_row_once_and_holds_exactly_what_touches_it(height: int, stride: int) -> None:
    tiling = Tiling(64, 64, stride, stride)
    steps = tiling.window_rows(height, 100)
    tops, lefts = tiling.placements(height, 100)
    assert [step.top for step in steps] == tops
    assert all(list(step.lefts) == lefts for step in steps)
    assert [row for step in steps for row in range(*step.rows)] == list(range(height))
    for step in steps:
        touching = [i for i, top in enumerate(tops) if top < step.rows[1] and top + 64 > step.rows[0]]
        assert list(step.held) == touching


def test_what_is_labelled_is_placed_as_a_window_of_that_size() -> None:
    inner, whole = Tiling(64, 80, 33, 40, margin=(9, 12, 7, 8)), Tiling(48, 60, 33, 40)
    for size in ((150, 233), (48, 60), (20, 90)):
        assert inner.window_rows(*size) == whole.window_rows(*size)
    assert Tiling.from_json(json.loads(json.dumps(inner.to_json()))) == inner


def test_a_bundle_from_before_margins_has_none() -> None:
    body = Tiling(64, 80, 33, 40).to_json()
    del body["margin"]
    assert Tiling.from_json(body) == Tiling(64, 80, 33, 40)


@pytest.mark.parametrize("margin", [(32, 0, 32, 0), (-1, 0, 0, 0), (0, 20, 0, 21)])
def test_margins_leave_something_that_is_labelled_at_every_stride(margin: tuple[int, int, int, int]) -> None:
    with pytest.raises(DeployError, match="tiling: got"):
        Tiling(64, 80, 33, 40, margin=margin)
