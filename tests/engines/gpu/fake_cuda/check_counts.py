"""What frames cost in calls of the driver, bytes and waits: figures that need no GPU.  Run by test_cuda.py."""

from __future__ import annotations

import pytest

from tests.engines.gpu.fake_cuda.counts import CASES, Case

FOUND = {case.name: case for case in CASES}
IMAGE, LABELS, STATUS, PLACE = 3 * 150 * 333, 150 * 333, 8, 72  # bytes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_spins_and_little_waits(case: Case) -> None:
    """The host sleeps once an image, or once a band, and nothing is copied within the GPU by the copy engine."""
    first, later = case.count()
    assert later["spins"] == first["spins"] == 0
    assert later["waits"] == (16 if case.strips else len(case.sizes))
    assert first["waits"] == later["waits"] + before_a_graph(case.contexts)
    assert later["copies within"] == 0


def before_a_graph(contexts: int) -> int:
    """How often the host waits before it is recorded: once for each stream.  A second context's is made with it."""
    return 3 if contexts == 1 else 3 + contexts


def test_a_second_context_costs_two_events_a_batch() -> None:
    """The lane waits for the pixels, and main for the lane; nothing else is more than with one."""
    one, two = (FOUND[f"8 images of 15 windows, batch 1{which}"].count()[1] for which in ("", ", two contexts"))
    assert two["records"] == one["records"] + 120
    assert two["follows"] == one["follows"] + 2 * 120
    assert {name for name in two if two[name] != one[name]} == {"records", "follows"}


def test_confidence_comes_down_as_one_byte_a_pixel() -> None:
    """2 bytes a pixel where files are written, 5 where floats are asked for; for one kernel more a stitch."""
    floats, quantised = (FOUND[f"8 images of 15 windows, batch 8, {which}"].count()[1] for which in
                         ("confidence", "confidence in bytes"))  # fmt: skip
    assert floats["bytes out"] == 8 * (5 * LABELS + STATUS)
    assert quantised["bytes out"] == 8 * (2 * LABELS + STATUS)
    stitches = quantised["kernels"] - floats["kernels"]
    assert stitches == floats["kernels"] - 2 * floats["engines"]
    assert {name for name in floats if floats[name] != quantised[name]} == {"kernels", "bytes out"}


def test_windows_cost_one_launch_and_one_small_copy() -> None:
    _, later = FOUND["8 images of 15 windows, batch 1"].count()
    assert (later["graphs"], later["engines"]) == (120, 120)
    assert later["kernels"] == 2 * 120 + 8 * 3  # gather and scatter of windows, stitch of rows
    assert later["copies in"] == 120 + 8
    assert later["bytes in"] == 8 * IMAGE + 120 * PLACE
    assert later["bytes out"] == 8 * (LABELS + STATUS)


def test_no_image_costs_more_than_its_windows() -> None:
    _, later = FOUND["8 images of 1 window, batch 8"].count()
    assert (later["engines"], later["graphs"]) == (1, 1)  # 8 before windows of several images shared a batch
    _, later = FOUND["8 images of 15 windows, batch 8"].count()
    assert later["engines"] == 120 // 8
    _, later = FOUND["8 images of 8 sizes, batch 4"].count()
    assert later["engines"] == 31  # of 118 windows, and once more where none is to come


def test_strips_and_large_images_are_replayed_too() -> None:
    _, later = FOUND["1 image of 80 windows, batch 1"].count()
    assert later["graphs"] == later["engines"] == 80
    _, later = FOUND["1 image of 80 windows in strips, batch 4"].count()
    assert later["graphs"] == later["engines"] == 20
