"""Which blocks to quantise together: the longest prefix of an order that stays in a budget, then one pass of swaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MOST_SWAPS = 4  # plans tried in that pass: each compiles an engine

Holds = Callable[[tuple[int, ...]], bool]


def ordered(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Blocks that gain, the cheapest gain first: by cost over gain, then by the larger gain."""
    paying = [index for index, gain in enumerate(gains) if gain > 0]
    return sorted(paying, key=lambda index: (max(costs[index], 0.0) / gains[index], -gains[index]))


def longest(
    order: Sequence[int], gains: Sequence[float], holds: Holds, most_swaps: int = MOST_SWAPS
) -> tuple[int, ...]:
    """The blocks to take of `order`, in that order; () where not even the first stays inside the budget.

    holds: whether a set of blocks stays inside it; asked at most 2 + log2(len(order)) + most_swaps times.  The longest
    prefix is bisected, as if a longer one never lost less.  Then each block that is left out, in order, is tried once:
    in addition, or where it gains more than the one of those taken that gains least, in its place.
    """
    if not order or holds(tuple(order)):
        return tuple(order)
    low, high = 0, len(order)  # the prefix of `low` holds, that of `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(tuple(order[:middle])) else (low, middle)
    return _swapped(order, low, gains, holds, most_swaps)


def _swapped(order: Sequence[int], length: int, gains: Sequence[float], holds: Holds, most: int) -> tuple[int, ...]:
    taken = set(order[:length])
    for index in order[length:]:
        with_it = [] if index == order[length] else [taken | {index}]  # that one was just refused
        least = min(taken, key=lambda i: gains[i], default=None)
        if least is not None and gains[index] > gains[least]:
            with_it.append(taken - {least} | {index})
        for tried in with_it[:most]:
            most -= 1
            if holds(tuple(i for i in order if i in tried)):
                taken = tried
                break
    return tuple(i for i in order if i in taken)
