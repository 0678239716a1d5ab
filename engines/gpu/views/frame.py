"""The views of one image on a GPU: their pixels made, their windows run, and rows merged as soon as all have theirs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from engines.contract import UInt8
from engines.errors import DeployError
from engines.gpu import kernels
from engines.gpu.clock import PartClock
from engines.gpu.context import GpuMemoryError
from engines.gpu.frames import GpuFrame, bytes_a_pixel, copy_pixels
from engines.gpu.kernels import NOT_RUN
from engines.gpu.memory import CudaEvent
from engines.gpu.views.launches import HeldView, Target, merge, resize
from engines.gpu.views.layout import ViewsPlan, logits_of, pixels_of
from engines.gpu.views.setup import Setup
from engines.spec import THRESHOLD
from engines.tiling.device import Band, Confidence, LazyRows, Mask
from engines.tiling.placement import Tiling, WindowRow
from engines.views.views import View
from engines.views.work import ViewTimes


class _OfViews(GpuFrame[ViewsPlan]):
    """Windows are handed to the launcher's batches turn by turn of the schedule; the rows of a turn are merged as soon
    as all its windows are started.

    times: of each view; complete with the result.
    """

    def __init__(self, setup: Setup, size: tuple[int, int], confidence: Confidence) -> None:
        super().__init__(setup.launcher, size, confidence)
        self._setup, self._image = setup, np.empty((0, 0, 3), np.uint8)
        self._schedule = setup.schedule(*size)
        self.times = tuple(ViewTimes(view) for view in self._schedule.views)
        self._order = [
            (view, row) for turn in self._schedule.turns for view, row in turn.runs
            for _ in self._schedule.windows[view][row].lefts
        ]  # fmt: skip
        self._handed = 0  # turns whose windows were handed over
        self._merged: list[CudaEvent] = []  # of each turn, when that was done
        self._done: list[CudaEvent] = []  # and when its rows were brought back
        self._counts: list[int] = []  # marks of the clock by then
        self._told = 0  # windows, of those whose rows were asked for
        self._made: set[str] = set()  # sizes whose pixels are there
        self._of: dict[int, tuple[str, Counter[int]]] = {}  # marks of the clock: part of which views, by windows
        self._loose: list[int] = []  # marks whose windows are not known yet

    def put(self, image: UInt8 | LazyRows) -> None:
        if isinstance(image, LazyRows):
            raise DeployError("views: got an image whose rows are read as they are needed, expected one in memory")
        with self._working():
            plan = self._setup.plan(self._size, bytes_a_pixel(image), self._confidence)
            try:
                self._take(plan)
            except GpuMemoryError as error:
                raise GpuMemoryError(self._setup.too_large(plan)) from error
            self._image = image
            if "image" in plan.regions:
                copy_pixels(self._held.arrays["image"][0], image)

    def needs(self, count: int) -> Iterator[CudaEvent]:
        yield self._held.uploaded[0]
        for view, row in dict.fromkeys(self._order[self._started : self._started + count]):
            over = row - self._held.plan.rings[view]
            for turn in range(len(self._merged) - 1, -1, -1) if over >= 0 else ():
                if self._schedule.touched(view, self._schedule.turns[turn].rows)[0] <= over:
                    yield self._merged[turn]
                    break

    def started(self, count: int) -> None:
        views = Counter(view for view, _ in self._order[self._started : self._started + count])
        self._started += count
        if not self._loose:
            self.mark("engine")
        for index in self._loose:
            self._of[index] = (self._of[index][0], views)
        self._loose.clear()
        ends = self._held.plan.ends
        while len(self._done) < len(ends) and ends[len(self._done)] <= self._started:
            self._merge(len(self._done))
        if self._launcher.on_window:
            self._launcher.on_window(self._started, ends[-1])

    def mark(self, part: str) -> None:
        super().mark(part)
        self._of[self._clock.count - 1] = (part, Counter())
        self._loose.append(self._clock.count - 1)

    def _begin(self) -> None:
        """Start bringing the image, before the first turn."""
        slot = self._held
        slot.arrays["status"][0] = NOT_RUN
        self._gpu.clear(slot.addresses["status"], 8, self._gpu.up)
        self._bring("image")
        self._clock = PartClock(self._gpu, self._launcher.last)
        self._clock.mark("")

    def _bring(self, name: str) -> None:
        """What the host has of a region, to the kernels, which wait for it."""
        slot, region = self._held, self._held.plan.regions.get(name)
        if region is not None and region.device is not None and region.host is not None:
            self._gpu.copy_in(slot.addresses[name], slot.arrays[name], self._gpu.up)
        self._there()

    def _there(self) -> None:
        """The kernels wait for what was started on up."""
        self._gpu.mark(self._held.uploaded[0], self._gpu.up)
        self._gpu.follow(self._gpu.main, self._held.uploaded[0])

    def _hand_over(self, index: int) -> None:
        """The windows of a turn."""
        for number, row in self._schedule.turns[index].runs:
            view, step = self._schedule.views[number], self._schedule.windows[number][row]
            address, pixel = self._pixels(number, view)
            strides = (pixel * view.width, pixel, 1)
            if view.mirror:
                address, strides = address + pixel * (view.width - 1), (strides[0], -pixel, 1)
            self._launcher.run.add(self._places(number, step, address, strides), self)
        self._handed = index + 1
        if self._handed == len(self._schedule.turns):
            self._image = np.empty((0, 0, 3), np.uint8)

    def _places(
        self, view: int, step: WindowRow, address: int, strides: tuple[int, int, int]
    ) -> list[np.void]:  # fmt: skip
        slot, run = self._held, self._launcher.run
        seen, columns = self._schedule.views[view], len(step.lefts)
        row = slot.addresses[logits_of(view)] + step.index % slot.plan.rings[view] * columns * run.window_bytes
        return list(
            kernels.place(
                address, (seen.height, seen.width), strides, step.top, step.lefts, run.size,
                logits=[row + i * run.window_bytes for i in range(columns)], arrived=slot.addresses["status"] + 4,
                margin=self._launcher.tiling.margin,
            )
        )  # fmt: skip

    def _pixels(self, number: int, view: View) -> tuple[int, int]:
        """Where a view's pixels are, not mirrored, and the bytes of one.  They are made when first asked for."""
        slot, size = self._held, (view.height, view.width)
        if size == self._size:
            return slot.addresses["image"], slot.plan.pixel
        name, channels = pixels_of(view), self._image.shape[2]
        if name not in self._made:
            self._made.add(name)
            if self._setup.made_here:
                height, width = self._size
                strides = (slot.plan.pixel * width, slot.plan.pixel, 1)
                made = resize(slot.addresses["image"], (height, width), strides, channels, slot.addresses[name], size)
                self._gpu.launch(self._launcher.code, made, self._gpu.up)
                self._there()
                super().mark("gather")
                self._of[self._clock.count - 1] = ("resize", Counter([number]))
            else:
                begin = time.perf_counter()
                slot.arrays[name][0] = self._setup.resampled(self._image, size)
                self._add(number, "resize", "gather", time.perf_counter() - begin)
                self._bring(name)
        return slot.addresses[name], channels

    def _merge(self, index: int) -> None:
        """The rows of a turn, from logits to labels on their way back."""
        slot, turn, launcher = self._held, self._schedule.turns[index], self._launcher
        for rows in slot.plan.parts(turn.rows):
            views = [self._held_view(number, rows) for number in range(len(self._schedule.views))]
            offset = rows[0] * self._size[1]
            floats = next((name for name in ("certainty", "confidence") if name in slot.plan.regions), None)
            to = Target(
                labels=slot.addresses["labels"] + offset, labels_stride=self._size[1],
                confidence=0 if floats is None else slot.addresses[floats] + 4 * offset,
                confidence_stride=self._size[1], status=slot.addresses["status"], means=slot.addresses["means"],
                merged=slot.addresses.get("merged", slot.addresses["means"]),
            )  # fmt: skip
            for launch in merge(
                views, self._setup.logits(slot.plan.direct), self._size, rows, to, kind=self._setup.views.merge,
                threshold=launcher.spec.threshold or THRESHOLD,
            ):  # fmt: skip
                self._gpu.launch(launcher.code, launch)
            if floats == "certainty":
                launcher.to_bytes(slot, 0, rows, offset)
        super().mark("stitch")
        launcher.last = self._clock.last
        self._download(turn.rows)

    def _held_view(self, number: int, rows: tuple[int, int]) -> HeldView:
        plan, schedule, view = self._held.plan, self._schedule, self._schedule.views[number]
        logits = self._held.addresses[logits_of(number)]
        if plan.direct:
            low = self._setup.low
            whole = Tiling(*low, *low)
            return HeldView(low, whole, logits=logits, ring=1, pitch=1, held=range(1))
        touched = schedule.touched(number, rows)
        return HeldView(
            (view.height, view.width), schedule.tiling, logits=logits, ring=plan.rings[number],
            pitch=len(schedule.windows[number][0].lefts), held=range(touched[0], touched[-1] + 1), mirror=view.mirror,
            share=len(view.scales) / sum(len(each.scales) for each in schedule.views),
        )  # fmt: skip

    def _download(self, rows: tuple[int, int]) -> None:
        """Start bringing back rows [r0, r1) of the result, and the status."""
        slot, gpu = self._held, self._gpu
        computed, done = gpu.event(), gpu.event()
        gpu.mark(computed, gpu.main)
        gpu.follow(gpu.down, computed)
        for name in ("labels", "confidence"):
            region = slot.plan.regions.get(name)
            if region is not None and region.device is not None:
                at = slot.addresses[name] + rows[0] * self._size[1] * region.dtype.itemsize
                gpu.copy_out(slot.arrays[name][0, slice(*rows)], at, gpu.down)
        gpu.copy_out(slot.arrays["status"], slot.addresses["status"], gpu.down)
        gpu.mark(done, gpu.down)
        self._merged.append(computed)
        self._done.append(done)
        self._counts.append(self._clock.count)

    def _result(self, index: int) -> Band:
        """Wait for the rows of turn `index`, and all before.  Raises DeployError if the logits were not numbers."""
        slot, plan, (row0, row1) = self._held, self._held.plan, self._schedule.turns[index].rows
        self._flush(plan.ends[index])
        self._gpu.finish(self._done[index])
        self._tell(self._counts[index])
        self._check(0, plan.ends[index], plan.ends[self._handed - 1])
        self._setup.timings.windows += plan.ends[index] - self._told
        self._told = plan.ends[index]
        rows, certainty = slice(row0, row1), slot.arrays.get("confidence")
        return Band(
            row0, row1, slot.arrays["labels"][0, rows], None if certainty is None else certainty[0, rows]
        )  # fmt: skip

    def _tell(self, count: int) -> None:
        """Of the first `count` marks, what took how long."""
        for index, part, seconds in self._clock.spans(count):
            own, views = self._of.get(index, ("", Counter[int]()))
            setattr(self._setup.timings, part, getattr(self._setup.timings, part) + seconds)
            for view, windows in views.items():
                self._add(view, own, "", seconds * windows / views.total())
            if own == "engine":
                for view, windows in views.items():
                    self.times[view].windows += windows

    def _add(self, view: int, own: str, part: str, seconds: float) -> None:
        setattr(self.times[view], own, getattr(self.times[view], own) + seconds)
        if part:
            setattr(self._setup.timings, part, getattr(self._setup.timings, part) + seconds)


class CudaViewsFrame(_OfViews):
    """Starts everything at once; windows that fill no batch wait for the next frame's, or for `mask`."""

    done = False  # the driver is not asked

    def play(self) -> None:
        with self._working():
            self._begin()
            for index in range(len(self._schedule.turns)):
                self._hand_over(index)
            if self._launcher.run.parts:
                self._launcher.run.flush()

    def mask(self) -> Mask:
        with self._working():
            self._result(len(self._schedule.turns) - 1)
            slot = self._held
            certainty = slot.arrays.get("confidence")
            mask = Mask(slot.arrays["labels"][0].copy(), None if certainty is None else certainty[0].copy())
        self._release()
        return mask


class CudaViewsStrips(_OfViews):
    """Runs turn by turn.  steps: the rows that are finished together; their windows are those of the views, and not
    listed.
    """

    def __init__(self, setup: Setup, size: tuple[int, int], confidence: Confidence) -> None:
        super().__init__(setup, size, confidence)
        self.steps = [
            WindowRow(index, top=turn.rows[0], lefts=(), rows=turn.rows, held=range(0))
            for index, turn in enumerate(self._schedule.turns)
        ]

    def advance(self, index: int) -> None:
        with self._working():
            if index == 0:
                self._begin()
            self._hand_over(index)

    def band(self, index: int) -> Band:
        with self._working():
            found = self._result(index)
            certainty = None if found.confidence is None else found.confidence.copy()
            band = Band(found.row0, found.row1, found.labels.copy(), certainty)
        if index + 1 == len(self.steps):
            self._release()
        return band
