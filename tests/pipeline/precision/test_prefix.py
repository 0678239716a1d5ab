"""The longest prefix inside a budget, and what one pass of swaps adds, against trying every set."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pipeline.precision.prefix import MOST_SWAPS, longest, ordered


def test_the_order_is_cost_over_gain() -> None:
    assert ordered([3, 1, 2, 9, 0], [1, 1, 4, 0, 2]) == [4, 2, 1, 0]  # 3 gains nothing
    assert ordered([-1, 0], [1, 2]) == [1, 0]  # a cost below nothing is none: the larger gain goes first
    assert ordered([], []) == []


@pytest.mark.parametrize("seed", range(30))
def test_against_every_set(seed: int) -> None:
    """Costs that add up: never beyond the budget, never worse than the best prefix, close to the best set of all."""
    rng = np.random.default_rng(seed)
    costs, gains = rng.exponential(1, 9), rng.exponential(1, 9) - 0.2
    budget, asked = rng.uniform(0, costs.sum()), list[tuple[int, ...]]()

    def holds(which: tuple[int, ...]) -> bool:
        asked.append(which)
        return bool(sum(costs[list(which)]) <= budget)

    order = ordered(list(costs), list(gains))
    taken = longest(order, list(gains), holds)
    value = sum(gains[list(taken)])
    assert sum(costs[list(taken)]) <= budget
    prefixes = [order[:k] for k in range(len(order) + 1)]
    assert value >= max(sum(gains[p]) for p in prefixes if sum(costs[p]) <= budget) - 1e-12
    sets = itertools.chain.from_iterable(itertools.combinations(order, k) for k in range(len(order) + 1))
    best = max(sum(gains[list(s)]) for s in sets if sum(costs[list(s)]) <= budget)
    assert value >= 0.75 * best
    assert len(asked) <= 2 + math.ceil(math.log2(max(len(order), 1))) + MOST_SWAPS
    assert len(set(asked)) == len(asked)  # each compiles an engine


def test_a_block_too_dear_does_not_end_the_list() -> None:
    """The third breaks the budget; the fourth, dearer for its gain, still fits."""
    costs, gains = [1.0, 1.0, 5.0, 1.5], [2.0, 2.0, 6.0, 1.0]
    taken = longest(ordered(costs, gains), gains, lambda which: sum(costs[i] for i in which) <= 4)
    assert taken == (0, 1, 3)
    assert longest([0], [1.0], lambda which: False) == ()
    assert longest([], [], lambda which: False) == ()
