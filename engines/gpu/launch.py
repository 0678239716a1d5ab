"""A kernel launch as a value: which kernel, how many threads, and the struct it takes by value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Dim = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """kernel: its extern "C" name.  argument: the one struct that it takes, a numpy record of the C layout."""

    kernel: str
    grid: Dim
    block: Dim
    argument: np.void
