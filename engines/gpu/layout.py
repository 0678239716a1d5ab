"""How much memory a frame takes on a GPU, and how it is laid out in one block of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from engines.tiling.device import Confidence
from engines.tiling.placement import Tiling, WindowRow

ALIGNMENT = 256  # of everything that an engine reads or writes, in bytes
STRIPS = 2  # of an image that is not held as a whole: one is brought while the other is worked on
STATUS, ARRIVED = 0, 1  # the status words: bits of what went wrong, and how many windows have their logits


@dataclass(frozen=True)
class Region:
    """A part of a block.  device, host: where it starts in that kind of memory; None where it has no place there."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    device: int | None
    host: int | None

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class MemoryLayout:
    """What is held of one image.  regions: by their names.  device, host: bytes of each kind in all."""

    regions: dict[str, Region]
    device: int
    host: int

    @property
    def bytes(self) -> int:
        return self.device + self.host


@dataclass(frozen=True)
class Wanted:
    """A region, and in which kinds of memory it has a place."""

    name: str
    shape: tuple[int, ...]
    dtype: type[np.generic]
    device: bool
    host: bool


def arranged(wanted: Sequence[Wanted]) -> MemoryLayout:
    """One region after another."""
    regions, device, host = {}, 0, 0
    for each in wanted:
        region = Region(
            each.shape, np.dtype(each.dtype), device if each.device else None, host if each.host else None
        )  # fmt: skip
        regions[each.name] = region
        room = -(-region.bytes // ALIGNMENT) * ALIGNMENT
        device, host = device + room * each.device, host + room * each.host
    return MemoryLayout(regions, device=device, host=host)


def confidences(shape: tuple[int, ...], wanted: Confidence, shared: bool) -> list[Wanted]:
    """What goes back of them, and where bytes do the floats that they are made of."""
    if not wanted:
        return []
    quantised = wanted == "bytes"
    back = Wanted("confidence", shape, np.uint8 if quantised else np.float32, device=not shared, host=True)
    return [back, Wanted("certainty", shape, np.float32, device=True, host=False)] if quantised else [back]


@dataclass(frozen=True)
class Plan(MemoryLayout):
    """What a frame holds.

    whole: the image and its labels, in one piece; otherwise only the rows at work, `STRIPS` times.
    pixel: bytes of one.  above: rows of the image that a window reads before those that it labels, see `Tiling.margin`.
    steps: the rows of windows.  ring: how many of them have their logits held.
    regions: image, labels, confidence if asked for, certainty where that is bytes, status, each as often as there are
    strips; logits.
    """

    height: int
    width: int
    pixel: int
    whole: bool
    steps: tuple[WindowRow, ...]
    ring: int
    above: int = 0

    @classmethod
    def of(
        cls, tiling: Tiling, size: tuple[int, int], pixel: int, confidence: Confidence, whole: bool, ahead: int,
        window_bytes: int, shared: bool, staged: bool,
    ) -> Plan:  # fmt: skip
        """size: (height, width) of the image.  ahead: windows at work at once.  window_bytes: logits of one.

        shared: the GPU uses the host's memory in place, so that what comes back needs no copy.  staged: nevertheless
        the image gets one, because the GPU does not cache that memory and windows overlap.
        """
        height, width = size
        steps = _steps(tiling, height, width)
        columns = len(steps[0].lefts)
        # Batches at work may end some rows further on, whose logits must not fall on those still to be stitched.
        ring = min(max(len(step.held) for step in steps) + -(-(ahead - 1) // columns), len(steps))
        times = 1 if whole else STRIPS
        image_rows = height if whole else min(tiling.window_h, height)
        label_rows = height if whole else max(end - start for start, end in (step.rows for step in steps))
        copied = not shared or (staged and len(steps) * columns > 1)
        wanted = [
            Wanted("image", (times, image_rows, width, pixel), np.uint8, device=copied, host=True),
            Wanted("labels", (times, label_rows, width), np.uint8, device=not shared, host=True),
            *confidences((times, label_rows, width), confidence, shared),
            Wanted("status", (times, 2), np.int32, device=True, host=True),
            Wanted("logits", (ring * columns * window_bytes,), np.uint8, device=True, host=False),
        ]
        layout = arranged(wanted)
        return cls(
            **vars(layout), height=height, width=width, pixel=pixel, whole=whole, steps=steps, ring=ring,
            above=tiling.margin[0],
        )  # fmt: skip

    def first_row(self, step: WindowRow) -> int:
        """Of the image, the first that is held while `step` runs: as many follow as the image's region has."""
        return max(0, min(step.top - self.above, self.height - self.regions["image"].shape[1]))

    def reader(self, row: int) -> int | None:
        """The last row of windows whose stitching reads the logits that those of `row` fall on, or None."""
        over = row - self.ring
        if over < 0:
            return None
        return max(step.index for step in self.steps[over : over + self.ring] if step.held.start <= over)

    @property
    def columns(self) -> int:
        return len(self.steps[0].lefts)

    @property
    def windows(self) -> int:
        return len(self.steps) * self.columns


@lru_cache(maxsize=64)
def _steps(tiling: Tiling, height: int, width: int) -> tuple[WindowRow, ...]:
    return tuple(tiling.window_rows(height, width))
