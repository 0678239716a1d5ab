"""In which order the windows of several views run, so that the same rows of the image are finished in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.tiling.merge import needed, source
from engines.tiling.placement import Tiling, WindowRow
from engines.views.views import View


@dataclass(frozen=True)
class Turn:
    """Rows [row0, row1) of the image that are final once `runs`, (view, row of its windows), have run."""

    rows: tuple[int, int]
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Schedule:
    """height: of the image.  windows: the rows of windows of each view, on its own pixels.  turns: top to bottom."""

    height: int
    views: tuple[View, ...]
    windows: tuple[tuple[WindowRow, ...], ...]
    turns: tuple[Turn, ...]
    tiling: Tiling

    @classmethod
    def of(cls, height: int, views: Sequence[View], tiling: Tiling) -> Schedule:
        windows = tuple(tuple(tiling.window_rows(view.height, view.width)) for view in views)
        ends = [
            [_final(step.rows[1], height, view.height) for step in steps]
            for view, steps in zip(views, windows, strict=True)
        ]
        turns: list[Turn] = []
        at, row = [-1] * len(views), 0
        while row < height:
            runs = []
            for view, end in enumerate(ends):
                while at[view] < 0 or end[at[view]] <= row:
                    at[view] += 1
                    runs.append((view, at[view]))
            stop = min(end[index] for end, index in zip(ends, at, strict=True))
            turns.append(Turn((row, stop), tuple(runs)))
            row = stop
        return cls(height, tuple(views), windows, tuple(turns), tiling)

    @property
    def count(self) -> int:
        """Windows in all."""
        return sum(len(steps) * len(steps[0].lefts) for steps in self.windows)

    def touched(self, view: int, rows: tuple[int, int]) -> list[int]:
        """The rows of windows of `view` that rows [r0, r1) of the image are sampled from."""
        first, end = needed(rows, self.height, self.views[view].height)
        tall = self.tiling.labelled[0]
        return [step.index for step in self.windows[view] if step.top < end and step.top + tall > first]

    def most_held(self) -> int:
        """The most windows whose logits are there at once."""
        latest, most = [0] * len(self.views), 0
        for turn in self.turns:
            latest = [max([at, *(row for of, row in turn.runs if of == view)]) for view, at in enumerate(latest)]
            most = max(
                most,
                sum(
                    (last - self.touched(view, turn.rows)[0] + 1) * len(self.windows[view][0].lefts)
                    for view, last in enumerate(latest)
                ),
            )
        return most


def _final(end: int, height: int, view_height: int) -> int:
    """How many rows of the image can be sampled from the first `end` rows of a view."""
    if end >= view_height:
        return height
    low, high = 0, height
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if source(middle, view_height, height)[1] < end else (low, middle)
    return low
