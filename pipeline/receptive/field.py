"""A measured receptive field: where in the image a unit looks, how far, and what share of that a window holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARES = (0.5, 0.9, 0.95, 0.99)  # of the energy, whose radii are told

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Field:
    """The effective receptive field of the centre unit of a map.

    gradient: (H, W) float64, |gradient| at each pixel of the window, averaged over images and the image's channels, and
    divided by its sum.  stride: input pixels a unit along y and x.  centre: (y, x) of the unit in pixels, half a pixel
    for strides that are even, as the runtime resizes logits.  images: windows that were averaged over.
    """

    name: str
    gradient: Float64
    stride: tuple[float, float]
    centre: tuple[float, float]
    images: int

    @cached_property
    def energy(self) -> Float64:
        """(H, W), sums to one: the gradient squared, of independent changes of pixels the variance that each causes."""
        squared = self.gradient**2
        energy: Float64 = squared / squared.sum()
        return energy

    def radii(self, shares: Sequence[float] = SHARES) -> list[float]:
        """Pixels from the centre within which each share of the energy lies: of discs, as the eye sees them."""
        return _reach(np.hypot(*self._distances()), self.energy, shares)

    def gradient_radii(self, shares: Sequence[float] = SHARES) -> list[float]:
        """The same of the gradient itself, whose long tails weigh more."""
        return _reach(np.hypot(*self._distances()), self.gradient, shares)

    def half_sides(self, shares: Sequence[float] = SHARES) -> list[float]:
        """The same of squares around the centre, as a window cuts it."""
        return _reach(np.maximum(*np.abs(np.broadcast_arrays(*self._distances()))), self.energy, shares)

    def profile(self, radii: NDArray[np.float64]) -> Float64:
        """The share of the energy within each of the `radii`."""
        distance = np.hypot(*self._distances()).ravel()
        order = np.argsort(distance)
        held = np.concatenate(([0.0], np.cumsum(self.energy.ravel()[order])))
        return held[np.searchsorted(distance[order], radii, side="right")]

    def deviation(self) -> tuple[float, float]:
        """Standard deviation of the gradient along y and x in pixels: of a Gaussian field, its sigma."""
        y, x = self._distances()
        return float(np.sqrt((self.gradient * y**2).sum())), float(np.sqrt((self.gradient * x**2).sum()))

    def within(self, before: tuple[int, int], after: tuple[int, int]) -> float:
        """The share that lies no more than `before` pixels above and left of the unit, and `after` below and right."""
        y, x = self._distances()
        rows = (y[:, 0] >= -before[0]) & (y[:, 0] <= after[0])
        columns = (x[0] >= -before[1]) & (x[0] <= after[1])
        return float(self.energy[np.ix_(rows, columns)].sum())

    def extent(self, floor: float = 0.0) -> tuple[int, int]:
        """Rows and columns from the first to the last with more than `floor` of the largest value."""
        seen = self.gradient > floor * self.gradient.max()
        sides = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
        height, width = (int(side[-1] - side[0] + 1) for side in sides)
        return height, width

    def to_json(self) -> dict[str, Any]:
        def named(values: list[float]) -> dict[str, float]:
            return {f"{share:g}": round(value, 2) for share, value in zip(SHARES, values, strict=True)}

        return {
            "name": self.name,
            "stride": list(self.stride),
            "images": self.images,
            "radius": named(self.radii()),
            "gradient_radius": named(self.gradient_radii()),
            "half_side": named(self.half_sides()),
            "deviation": [round(value, 2) for value in self.deviation()],
        }

    def _distances(self) -> tuple[Float64, Float64]:
        height, width = self.gradient.shape
        rows, columns = np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64)
        return rows[:, None] - self.centre[0], columns[None] - self.centre[1]


def _reach(distance: Float64, weight: Float64, shares: Sequence[float]) -> list[float]:
    """The least distance within which each share of the weight lies, but for what sums of float64 lose."""
    order = np.argsort(distance, axis=None)
    held = np.cumsum(weight.ravel()[order])
    last = np.minimum(np.searchsorted(held, np.asarray(shares) - 1e-12), held.size - 1)
    return [float(value) for value in distance.ravel()[order[last]]]
