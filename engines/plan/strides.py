"""A stride, what it is worth, and which one to take."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.records import read_record

SHARE = 0.95  # of the energy that is asked for unless told otherwise


@dataclass(frozen=True)
class StrideShare:
    """share: of its receptive field's energy that the window of the worst interior pixel holds, 0 to 1."""

    stride_h: int
    stride_w: int
    share: float

    @property
    def stride(self) -> tuple[int, int]:
        return self.stride_h, self.stride_w

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_shares(rows: Any, source: str) -> tuple[StrideShare, ...]:
    """Inverse of a list of `to_json`.  Raises DeployError, naming `source`."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise DeployError(f"{source}: got no list of strides, expected what receptive-field writes")
    return tuple(read_record(StrideShare, row, source, "run receptive-field again") for row in rows)


def shares_of(path: Path, window: tuple[int, int]) -> tuple[StrideShare, ...]:
    """Those that `receptive-field` wrote to `path`, for windows (h, w).  Raises DeployError."""
    try:
        body = json.loads(path.read_text())
        there = tuple(body["window"])
        rows = body["strides"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DeployError(f"--field {path}: got {error!r}, expected the JSON that receptive-field writes") from error
    if there != window:
        raise DeployError(
            f"--field {path}: got fields in a window of {there}, expected the bundle's {window}; run receptive-field "
            f"with --tile {window[0]}x{window[1]}"
        )
    return read_shares(rows, f"--field {path}")


def choose(
    shares: Sequence[StrideShare], share: float, predicted_ms: Callable[[tuple[int, int]], float] | None = None,
    budget_ms: float = math.inf,
) -> StrideShare:  # fmt: skip
    """The largest stride that keeps `share`, or one that takes no longer and keeps more.

    Where that is outside of the budget, or none keeps the share, the best share inside of it.
    predicted_ms: of a frame at a stride (h, w); None knows no time.  Raises DeployError where no stride will do.
    """
    wanted = max((each for each in shares if each.share >= share), key=lambda each: each.stride, default=None)
    if wanted is None and (predicted_ms is None or budget_ms == math.inf):
        best = max(shares, key=lambda each: each.share)
        raise DeployError(
            f"--share {share:g}: got at most {best.share:.3f} of the receptive field's energy, at a stride of "
            f"{best.stride_h}x{best.stride_w}; give a lower --share, a larger --tile, or a --budget-ms to spend"
        )
    if predicted_ms is None:
        assert wanted is not None
        return wanted
    limit = budget_ms if wanted is None else min(budget_ms, predicted_ms(wanted.stride))
    fit = [each for each in shares if predicted_ms(each.stride) <= limit]
    if not fit:
        fastest = max(shares, key=lambda each: each.stride)
        raise DeployError(
            f"--budget-ms {budget_ms:g}: got {predicted_ms(fastest.stride):.0f} ms even at a stride of "
            f"{fastest.stride_h}x{fastest.stride_w}, where windows do not overlap; give more, or a cheaper --precision"
        )
    return max(fit, key=lambda each: (each.share, each.stride))
