"""What tests on graphs drawn from seeds share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tests.pipeline.graph.test_rewrites import Net

SCALE = int(os.environ.get("NEAR_MISSES", "1"))  # NEAR_MISSES=20 draws twenty times as many graphs


def seeds(count: int) -> range:
    return range(count * SCALE)


def pick(net: Net, *choices: Any) -> Any:
    return choices[net.rng.integers(len(choices))]


def sometimes(net: Net, share: float = 0.1) -> bool:
    return bool(net.rng.random() < share)


def maybe_read(net: Net, *values: str) -> list[str]:
    """Now and then somebody else reads what lies between."""
    return [value for value in values if sometimes(net)]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)
