"""How much memory the views of an image take on a GPU, and how it is laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from engines.gpu.layout import MemoryLayout, Wanted, arranged, confidences
from engines.gpu.views.launches import room
from engines.tiling.device import Confidence
from engines.views.schedule import Schedule
from engines.views.views import View

SCRATCH = 128 * 2**20  # bytes of mean logits and merged probabilities, about: so many rows are merged at once
ROWS = 4  # at least


@dataclass(frozen=True)
class WindowLogits:
    """ahead: at work at once.  bytes: the logits of one.  classes: channels of the logits.  low: their (h, w)."""

    ahead: int
    bytes: int
    classes: int
    low: tuple[int, int]


@dataclass(frozen=True)
class ViewsPlan(MemoryLayout):
    """What the views of one image of `size` hold.

    pixel: bytes of one, of the image.  rings: of each view, how many rows of its windows have their logits held.
    ends: how many windows have been handed over with each turn of the schedule.  rows: that are merged at once.
    direct: the one window is the resized image, and its logits go straight to the image's size.
    regions: image, labels, confidence if asked for, certainty where that is bytes, status; the pixels of each other
    size, by `pixels_of`; logits of each view; mean logits of one view; what is merged so far.
    """

    size: tuple[int, int]
    pixel: int
    schedule: Schedule
    rings: tuple[int, ...]
    ends: tuple[int, ...]
    rows: int
    direct: bool

    @classmethod
    def of(
        cls, schedule: Schedule, size: tuple[int, int], pixel: int, channels: int, windows: WindowLogits, direct: bool,
        confidence: Confidence, made_here: bool, copied: bool, shared: bool,
    ) -> ViewsPlan:  # fmt: skip
        """made_here: the GPU resizes the image; else views come from the host.  copied: what comes from there is.

        shared: the GPU uses the host's memory in place, so that what goes back needs no copy.
        """
        height, width = size
        views = [(view.height, view.width) for view in schedule.views]
        merged_from = [windows.low] if direct else views
        ends = tuple(accumulate(_count(schedule, turn.runs) for turn in schedule.turns))
        rings = _rings(schedule, ends, windows.ahead)
        several, per_row = len(views) > 1, 4 * windows.classes * width
        rows = _rows(windows.classes, size, merged_from)
        wanted = [
            Wanted("labels", (1, height, width), np.uint8, device=not shared, host=True),
            Wanted("status", (1, 2), np.int32, device=True, host=True),
            Wanted(
                "means", (max(room(windows.classes, rows, size, view) for view in merged_from),), np.float32,
                device=True, host=False,
            ),
        ]  # fmt: skip
        if made_here or size in views:
            wanted.append(Wanted("image", (1, height, width, pixel), np.uint8, device=copied, host=True))
        wanted += confidences((1, height, width), confidence, shared)
        if several:
            wanted.append(Wanted("merged", (rows * per_row,), np.uint8, device=True, host=False))
        for view in dict.fromkeys(schedule.views):
            other = (view.height, view.width) != size and pixels_of(view) not in {each.name for each in wanted}
            if other:
                wanted.append(
                    Wanted(
                        pixels_of(view), (1, view.height, view.width, channels), np.uint8, device=made_here or copied,
                        host=not made_here,
                    )
                )  # fmt: skip
        for index, (ring, steps) in enumerate(zip(rings, schedule.windows, strict=True)):
            shape = (ring * len(steps[0].lefts) * windows.bytes,)
            wanted.append(Wanted(logits_of(index), shape, np.uint8, device=True, host=False))
        return cls(
            **vars(arranged(wanted)), size=size, pixel=pixel, schedule=schedule, rings=rings, ends=ends, rows=rows,
            direct=direct,
        )  # fmt: skip

    @property
    def logits(self) -> int:
        """Bytes of logits that are held."""
        return sum(self.regions[logits_of(index)].bytes for index in range(len(self.rings)))

    def parts(self, rows: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """The rows [r0, r1) of a turn, as many as are merged at once after another."""
        for start in range(*rows, self.rows):
            yield start, min(start + self.rows, rows[1])


def pixels_of(view: View) -> str:
    return f"pixels {view.width}x{view.height}"


def logits_of(view: int) -> str:
    return f"logits {view}"


def _count(schedule: Schedule, runs: tuple[tuple[int, int], ...]) -> int:
    return sum(len(schedule.windows[view][row].lefts) for view, row in runs)


def _rings(schedule: Schedule, ends: tuple[int, ...], ahead: int) -> tuple[int, ...]:
    """Of each view, from the first row of windows that a turn is merged from to the last that may have begun.

    Batches at work may end some windows after those of the turn, and their logits must not fall on what is still to be
    merged.
    """
    order = [
        (view, row) for turn in schedule.turns for view, row in turn.runs for _ in schedule.windows[view][row].lefts
    ]
    rings, latest, at = [1] * len(schedule.views), [0] * len(schedule.views), 0
    for turn, end in zip(schedule.turns, ends, strict=True):
        while at < min(end + ahead - 1, len(order)):
            latest[order[at][0]] = order[at][1]
            at += 1
        for view, last in enumerate(latest):
            rings[view] = max(rings[view], last - schedule.touched(view, turn.rows)[0] + 1)
    return tuple(rings)


def _rows(classes: int, size: tuple[int, int], views: list[tuple[int, int]]) -> int:
    """How many rows of the image are merged at once."""
    height, width = size
    whole = 4 * max(room(classes, height, size, view) for view in views)
    whole += 4 * classes * height * width * (len(views) > 1)
    return max(min(ROWS, height), min(height, height * SCRATCH // whole))
