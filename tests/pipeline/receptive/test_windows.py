"""Which share of a field the window of the worst pixel holds, against looking at every pixel of an image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from engines.plan.strides import choose
from engines.tiling.placement import Tiling
from pipeline.receptive.field import Field
from pipeline.receptive.windows import share_at, stride_shares


def _field(seed: int, size: tuple[int, int], centre: tuple[float, float]) -> Field:
    """Lopsided, so that a corner is worst that is not any corner."""
    gradient = np.random.default_rng(seed).random(size) ** 4
    return Field("output", gradient / gradient.sum(), stride=(1, 1), centre=centre, images=1)


def _worst(field: Field, stride: tuple[int, int]) -> float:
    """The least share over all interior pixels of a large image, each in the window in whose middle it lies most."""
    height, width = field.gradient.shape
    image = (height + 4 * stride[0], width + 4 * stride[1])
    tops, lefts = Tiling(height, width, *stride).placements(*image)
    row, column = (int(side) for side in field.centre)
    total = field.energy.sum()

    def before(places: list[int], pixel: int, window: int) -> int:
        """Pixels before it in that window."""
        return max((pixel - top for top in places if 0 <= pixel - top < window), key=lambda k: min(k, window - 1 - k))

    rows = {before(tops, y, height) for y in range(height // 2, image[0] - height // 2)}
    columns = {before(lefts, x, width) for x in range(width // 2, image[1] - width // 2)}
    held = [
        field.energy[max(0, row - y) : row + height - y, max(0, column - x) : column + width - x].sum() / total
        for y in rows
        for x in columns
    ]
    return float(min(held))


@pytest.mark.parametrize("stride", [(4, 6), (8, 12), (10, 20), (12, 18), (16, 24)])
@pytest.mark.parametrize("seed", range(3))
def test_a_share_is_that_of_the_worst_pixel(seed: int, stride: tuple[int, int]) -> None:
    field = _field(seed, (16, 24), (8.0, 12.0))
    assert share_at(field, stride) == pytest.approx(_worst(field, stride), abs=1e-12)


def test_shares_fall_as_strides_grow_and_the_largest_that_keeps_enough_is_taken() -> None:
    shares = stride_shares(_field(0, (64, 64), (32.0, 32.0)))
    assert [each.stride_h for each in shares] == list(range(2, 65, 2))
    assert all(a.share >= b.share for a, b in itertools.pairwise(shares))
    assert choose(shares, shares[10].share) == shares[10]


def test_half_a_pixel_does_not_count_as_seen() -> None:
    """Of a unit between two pixels, as all are at an even stride."""
    field = _field(0, (16, 16), (7.5, 7.5))
    assert field.within((3, 16), (16, 16)) == pytest.approx(field.energy[5:].sum())
