"""The images on which a candidate differs most from the reference, kept as small pictures."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.images.write import overlay, shrink
from engines.spec import RGB

KEPT = 3
WIDTH = 480  # pixels, of each picture at most
MARK = (235, 38, 72)  # where labels differ


@dataclass(frozen=True)
class Picture:
    """share: of labels equal to the reference's, 0..1.  The rest: (h, w, 3) uint8, at most WIDTH wide."""

    name: str
    share: float
    image: UInt8
    reference: UInt8
    candidate: UInt8
    difference: UInt8


class Worst:
    """The KEPT images with the fewest equal labels; those without any difference are not worth a look."""

    def __init__(self, palette: Sequence[RGB]) -> None:
        self._palette = palette
        self._heap: list[tuple[float, int, Picture]] = []  # the best of the kept ones first
        self._count = 0

    def offer(self, name: str, share: float, image: UInt8, reference: UInt8, candidate: UInt8) -> None:
        """image: (H, W, 3) uint8; label maps (H, W) uint8."""
        self._count += 1
        full = len(self._heap) == KEPT
        if share == 1 or (full and share >= -self._heap[0][0]):
            return
        picture = Picture(
            name, share, image=shrink(image, WIDTH),
            reference=shrink(overlay(image, reference, self._palette, 0.7), WIDTH),
            candidate=shrink(overlay(image, candidate, self._palette, 0.7), WIDTH),
            difference=_difference(image, reference != candidate),
        )  # fmt: skip
        entry = (-share, -self._count, picture)
        if full:
            heapq.heapreplace(self._heap, entry)
        else:
            heapq.heappush(self._heap, entry)

    def pictures(self) -> tuple[Picture, ...]:
        """The worst first."""
        return tuple(picture for _, _, picture in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1])))


def _difference(image: UInt8, differs: NDArray[np.bool_]) -> UInt8:
    """The image, grey and pale, with a mark of 3 x 3 small pixels wherever a small pixel covers a difference."""
    small = shrink(image, WIDTH).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    pale = np.repeat((150 + 0.38 * small)[..., None], 3, axis=2).astype(np.uint8)
    height, width = pale.shape[:2]
    rows, columns = np.nonzero(differs)
    marks = np.zeros((height + 2, width + 2), bool)
    rows, columns = rows * height // differs.shape[0], columns * width // differs.shape[1]
    for y, x in np.ndindex(3, 3):
        marks[rows + y, columns + x] = True
    pale[marks[1:-1, 1:-1]] = MARK
    return pale
