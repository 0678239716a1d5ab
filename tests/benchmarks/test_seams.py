"""The study of seams: what each way to blend gives a pixel, and what is counted near a border."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.seams import EDGE, SCHEMES, Tally, band_of, weights
from engines.tiling.placement import Tiling


def _votes(scheme: str, length: int, window: int, stride: int) -> list[np.ndarray]:
    """Of each window, its weights at its place in a line of `length` pixels."""
    places, _ = Tiling(window, window, stride, stride).placements(length, length)
    found = []
    for index, place in enumerate(places):
        line = np.zeros(length, np.float32)
        line[place : place + window] = weights(scheme, places, index, window)
        found.append(line)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("length", "stride"), [(200, 32), (200, 48), (190, 56), (64, 48)])
def test_every_pixel_has_a_vote(scheme: str, length: int, stride: int) -> None:
    assert (np.sum(_votes(scheme, length, 64, stride), axis=0) > 0).all()


def test_nearest_gives_each_pixel_to_the_window_in_whose_middle_it_lies_most() -> None:
    votes = _votes("nearest", 190, 64, 48)
    assert (np.sum(votes, axis=0) == 1).all()
    places, _ = Tiling(64, 64, 48, 48).placements(190, 190)
    inside = [np.minimum(np.arange(190) - place, place + 63 - np.arange(190)) for place in places]
    chosen, best = np.argmax(votes, axis=0), np.max(inside, axis=0)
    taken = np.array(inside)[chosen, np.arange(190)]
    assert (taken[32:-32] >= best[32:-32] - 1).all()  # in the very middle of an overlap either will do


def test_trimmed_discards_borders_but_not_those_of_the_image() -> None:
    first, *_, last = _votes("trimmed", 200, 64, 48)
    assert first[0] == last[-1] == 1
    assert first[63] == first[64 - 64 // EDGE] < 1e-5
    assert first[63 - 64 // EDGE] == 1


def test_the_band_lies_on_both_sides_of_borders_inside_the_image() -> None:
    band = band_of((64, 160), [0], [0, 48, 96], 64)
    near = np.flatnonzero(band[0])
    expected = sorted({p + d for p in (48, 64, 96, 112) for d in range(-4, 4)})
    assert near.tolist() == expected
    assert (band == band[0]).all()
    assert not band_of((64, 64), [0], [0], 64).any()


def test_agreement_is_counted_apart_and_scores_are_mean_iou() -> None:
    tally = Tally()
    labels, whole = np.array([[0, 1], [1, 1]], np.uint8), np.array([[0, 1], [0, 1]], np.uint8)
    truth = np.array([[0, 1], [0, 255]], np.uint8)
    tally.add(labels, whole, np.array([[True, True], [False, False]]), truth, 2)
    assert tally.row() == {"band": 1.0, "rest": 0.5, "miou": pytest.approx((1 / 2 + 1 / 2) / 2)}
