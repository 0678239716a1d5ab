"""A stride and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StrideShare:
    """share: of its receptive field's energy that the window of the worst interior pixel holds, 0 to 1."""

    stride_h: int
    stride_w: int
    share: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def largest_with(shares: Sequence[StrideShare], share: float) -> StrideShare | None:
    """The largest stride that keeps `share`; None where no stride does."""
    return max((each for each in shares if each.share >= share), key=lambda each: each.stride_h, default=None)
