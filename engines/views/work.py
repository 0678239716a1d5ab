"""One image on its way: its views resized, their windows run, and their logits held until rows are merged from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from engines.contract import Float32, UInt8
from engines.images.resize import resample
from engines.spec import THRESHOLD
from engines.tiling import core
from engines.tiling.device import Device, Timings
from engines.tiling.inputs import window_input
from engines.tiling.merge import ViewLogits, merge, needed, source
from engines.views.schedule import Schedule
from engines.views.store import InFile, InMemory, Store
from engines.views.views import ImageViews, View

IN_MEMORY = 64 * 2**20  # bytes of logits that several views may hold in any case
LOADED = 32 * 2**20  # and of those that are read back at once, where they hold more
ROWS = (8, 64)  # of the image that are then merged at once: at least, at most


@dataclass
class ViewTimes:
    """What one view took, in seconds.  resize: of its size's first view.  windows: that were run."""

    view: View
    windows: int = 0
    resize: float = 0.0
    gather: float = 0.0
    engine: float = 0.0

    def to_json(self) -> dict[str, Any]:
        times = {f"{part}_ms": 1e3 * getattr(self, part) for part in ("resize", "gather", "engine")}
        return {**asdict(self.view), "windows": self.windows, **times}


@runtime_checkable
class TimedViews(Protocol):
    """A frame of several views.  times: of each."""

    times: tuple[ViewTimes, ...]


class ViewWork:
    """threads: for all but the engine.  times, timings: are added to.

    spare: files for logits that other images are done with; its own comes back to them.
    """

    def __init__(
        self, inner: Device, views: ImageViews, schedule: Schedule, times: Sequence[ViewTimes], timings: Timings,
        threads: int, spare: list[InFile],
    ) -> None:  # fmt: skip
        self._inner, self._views, self._schedule, self._threads = inner, views, schedule, threads
        self._spare = spare
        self._times, self._timings, self._tiling = times, timings, inner.tiling
        self._window = inner.tiling.labelled
        self._weights = core.blend_weights(inner.tiling.blend, *self._window)
        sides = inner.tiling.window_h, inner.tiling.window_w
        self._batch = np.zeros((inner.batch, len(inner.spec.mean), *sides), np.float32)
        self._seen: dict[tuple[int, int], UInt8] = {}  # resized images by their size, while windows of them are to come
        self._logits = (0, 0, 0)  # (K, h, w) of a window
        self._store: Store | None = None
        self._done = 0
        self._dropped = [0] * len(schedule.views)  # rows of windows
        self.image: UInt8 = np.empty((0, 0, 3), np.uint8)

    def turn(
        self, index: int, labels: UInt8, confidence: Float32 | None, on_window: Callable[[int, int], None] | None
    ) -> None:  # fmt: skip
        """Run the windows of a turn of the schedule and write its rows.  Raises NotFiniteError on such logits."""
        turn = self._schedule.turns[index]
        for view, row in turn.runs:
            self._run(view, row, on_window)
        with self._timed("stitch"):
            row0, row1 = turn.rows
            for start in range(row0, row1, self._rows_at_once()):
                end = min(start + self._rows_at_once(), row1)
                part = slice(start - row0, end - row0)
                self._merge((start, end), labels[part], None if confidence is None else confidence[part])
            self._forget(index)

    def _run(self, view: int, row: int, on_window: Callable[[int, int], None] | None) -> None:
        """A row of windows of a view."""
        step, inner, spec, times = self._schedule.windows[view][row], self._inner, self._inner.spec, self._times[view]
        with self._timed("gather", times, "resize"):
            image = self._pixels(view)
        for start in range(0, len(step.lefts), inner.batch):
            some = step.lefts[start : start + inner.batch]  # what is left in a short batch is run for nothing
            with self._timed("gather", times, "gather"):
                for slot, left in enumerate(some):
                    window_input(
                        image, step.top, left, spec, self._tiling, out=self._batch[slot], threads=self._threads
                    )  # fmt: skip
            with self._timed("engine", times, "engine"):
                logits = inner.session.run(self._batch)
            with self._timed("stitch"):
                for slot in range(len(some)):
                    self._keep(logits[slot]).put((view, row, start + slot), logits[slot])
            self._timings.windows += len(some)
            times.windows += len(some)
            self._done += len(some)
            if on_window:
                on_window(self._done, self._schedule.count)
        if row + 1 == len(self._schedule.windows[view]):
            self._let_go(view)

    def _pixels(self, view: int) -> UInt8:
        """The view's image."""
        seen = self._schedule.views[view]
        size = (seen.height, seen.width)
        if size not in self._seen:
            self._seen[size] = resample(self.image, size, self._inner.spec.resample, self._threads)
        return mirrored(self._seen[size], seen)

    def _let_go(self, view: int) -> None:
        """The pixels of a view whose last windows have run; its mirror image runs after it in the same turn."""
        views = self._schedule.views
        last = max(index for index, each in enumerate(views) if _size(each) == _size(views[view]))
        if view == last:
            del self._seen[_size(views[view])]

    def _keep(self, logits: Float32) -> Store:
        """Where logits of this size are held: in memory those of one view, as a plain run does, and few of several."""
        if self._store is None:
            self._logits = (logits.shape[0], logits.shape[1], logits.shape[2])
            plain = self._tiling.window_rows(self._schedule.height, self.image.shape[1])
            most = max(len(step.held) * len(step.lefts) for step in plain) * logits.nbytes
            held = self._schedule.most_held() * logits.nbytes
            few = len(self._schedule.views) == 1 or held <= max(IN_MEMORY, most)
            self._store = InMemory() if few else self._spare.pop() if self._spare else InFile()
        return self._store

    def _rows_at_once(self) -> int:
        if not isinstance(self._store, InFile):
            return self._schedule.height
        classes, height, width = self._logits
        row = sum(  # bytes of logits behind one row of the image
            4
            * classes
            * width
            * len(steps[0].lefts)
            * 2
            * view.height
            / self._schedule.height
            * height
            / self._window[0]
            for view, steps in zip(self._schedule.views, self._schedule.windows, strict=True)
        )
        return max(ROWS[0], min(ROWS[1], int(LOADED / row)))

    def _merge(self, rows: tuple[int, int], labels: UInt8, confidence: Float32 | None) -> None:
        assert self._store is not None
        self._store.start()
        views = self._schedule.views
        total = sum(len(view.scales) for view in views)
        merge(
            [self._held(index, rows, len(view.scales) / total) for index, view in enumerate(views)],
            (self._schedule.height, self.image.shape[1]), rows, labels, confidence, kind=self._views.merge,
            weights=None if self._direct() else self._weights, threads=self._threads,
            threshold=self._inner.spec.threshold or THRESHOLD,
        )  # fmt: skip

    def _held(self, index: int, rows: tuple[int, int], share: float) -> ViewLogits:
        """What is held of a view's logits for rows [r0, r1) of the image."""
        view, (_, low_h, low_w) = self._schedule.views[index], self._logits
        assert self._store is not None
        if self._direct():
            held, _ = self._store.rows((0, 0, 0), 0, low_h)
            return ViewLogits(
                (low_h, low_w), (low_h, low_w), (low_h, low_w), tops=[0], lefts=[0], rows=[held], first=[0]
            )
        first, end = needed(rows, self._schedule.height, view.height)
        tops, lefts, parts, starts = [], [], [], []
        for row in self._schedule.touched(index, rows):
            step = self._schedule.windows[index][row]
            above, below = max(first - step.top, 0), min(end - step.top, self._window[0]) - 1
            reach = source(above, low_h, self._window[0])[0], source(below, low_h, self._window[0])[1] + 1
            for column, left in enumerate(step.lefts):
                part, start = self._store.rows((index, row, column), *reach)
                tops.append(step.top)
                lefts.append(left)
                parts.append(part)
                starts.append(start)
        return ViewLogits(
            _size(view), self._window, (low_h, low_w), tops=tops, lefts=lefts, rows=parts, first=starts,
            mirror=view.mirror, share=share,
        )  # fmt: skip

    def _direct(self) -> bool:
        """Whether the one window is the resized image, and its logits go straight to the image's size."""
        views = self._schedule.views
        return self._inner.spec.direct and not self._views.scales and _size(views[0]) == self._window

    def _forget(self, index: int) -> None:
        """Drop the logits that no row after those of this turn is sampled from."""
        assert self._store is not None
        if index + 1 == len(self._schedule.turns):
            if isinstance(self._store, InFile):
                self._store.clear()
                self._spare.append(self._store)
            self._store = None
            return
        after = self._schedule.turns[index].rows[1]
        for view in range(len(self._schedule.views)):
            wanted = self._schedule.touched(view, (after, after + 1))[0]
            for row in range(self._dropped[view], wanted):
                self._store.drop(view, row)
            self._dropped[view] = wanted

    @contextmanager
    def _timed(self, part: str, times: ViewTimes | None = None, own: str = "") -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            setattr(self._timings, part, getattr(self._timings, part) + spent)
            if times is not None:
                setattr(times, own, getattr(times, own) + spent)


def mirrored(image: UInt8, view: View) -> UInt8:
    """The image, from right to left where the view is mirrored."""
    return image[:, ::-1] if view.mirror else image


def _size(view: View) -> tuple[int, int]:
    return view.height, view.width
