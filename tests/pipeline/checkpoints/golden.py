"""What published checkpoints hold: the lists in ``keys/``, which other people's code printed, and tensors under them.

A line is ``name shape dtype``: 32x3x7x7, or ``-`` for a number.  ``{0..23}`` in a name stands for each of 0 to 23.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.pipeline.checkpoints.published import State, randomise

KEYS = Path(__file__).parent / "keys"
LISTS = sorted(path.stem for path in KEYS.glob("*.txt"))
_RANGE = re.compile(r"\{0\.\.(\d+)\}")


def listed(name: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type by the name of each tensor."""
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for line in (KEYS / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pattern, shape, dtype = line.split()
            sizes = () if shape == "-" else tuple(int(side) for side in shape.split("x"))
            for key in _each(pattern):
                assert key not in found, f"{name}: {key} twice"
                found[key] = sizes, getattr(torch, dtype)
    return found


def random_state(name: str, seed: int = 0) -> State:
    """Values under which every constant of the network shows; see `randomise`."""
    random, state = torch.Generator().manual_seed(seed), State()
    for key, (shape, dtype) in listed(name).items():
        state[key] = torch.zeros(shape, dtype=dtype)
        randomise(state[key], key, random)
    return state


def hollow_state(name: str) -> State:
    """Every value of a tensor is the same stored number, so that a network of 1.2 GB is a file of some kilobytes."""
    return {key: torch.full((1,), 0.5).to(dtype).expand(shape) if shape else torch.zeros((), dtype=dtype)
            for key, (shape, dtype) in listed(name).items()}  # fmt: skip


def _each(pattern: str) -> Iterator[str]:
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    for number in range(int(match[1]) + 1):
        yield pattern[: match.start()] + str(number) + pattern[match.end() :]
