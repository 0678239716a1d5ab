"""Frames on a GPU: they hold the whole image, or only the rows at work."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Generic

import numpy as np
from numpy.lib.stride_tricks import as_strided

from engines.contract import UInt8
from engines.errors import DeployError, NotFiniteError
from engines.gpu.clock import PartClock
from engines.gpu.kernels import NOT_FINITE
from engines.gpu.launcher import Launcher
from engines.gpu.layout import ARRIVED, STATUS, STRIPS, Plan
from engines.gpu.memory import CudaEvent
from engines.gpu.pool import L, Slot
from engines.tiling import core
from engines.tiling.core import MESSAGES
from engines.tiling.device import Band, Confidence, LazyRows, Mask
from engines.tiling.placement import WindowRow


class GpuFrame(Generic[L]):
    """The use of a slot by one image, from `put` on; it ends with the result or with an error."""

    def __init__(self, launcher: Launcher, size: tuple[int, int], confidence: Confidence) -> None:
        self._launcher, self._gpu, self._size, self._confidence = launcher, launcher.gpu, size, confidence
        self._slot: Slot[L] | None = None
        self._used: Slot[L] | None = None  # what that was
        self._clock = PartClock(launcher.gpu)
        self._error: DeployError | None = None
        self._started = 0  # windows

    def needs(self, count: int) -> Iterator[CudaEvent]:
        """See `engines.gpu.windows.Job`."""
        raise NotImplementedError

    def started(self, count: int) -> None:
        """See `engines.gpu.windows.Job`."""
        raise NotImplementedError

    def failed(self, error: DeployError) -> None:
        self._error = error

    def mark(self, part: str) -> None:
        self._clock.mark(part)

    @property
    def _held(self) -> Slot[L]:
        if self._slot is None:
            raise DeployError("frame: its result was taken, or it got no image; take each result once")
        return self._slot

    def _take(self, plan: L) -> None:
        self._slot = self._launcher.take(plan, self)

    def _release(self) -> None:
        if self._slot is not None:
            self._slot.release()
            self._slot, self._used = None, self._slot

    @contextmanager
    def _working(self) -> Iterator[None]:
        """After an error the slot is free again, once nothing that was started uses it any more."""
        if self._error is not None and self._slot is None:
            raise self._error
        try:
            yield
        except BaseException:
            self._launcher.run.drop(self)
            with suppress(DeployError):  # the error at hand is the one to tell
                self._gpu.synchronize()
            self._release()
            raise

    def _flush(self, windows: int) -> None:
        """Start so many windows of it that are still waiting.  Raises what went wrong with any."""
        if self._started < windows and self._error is None:
            self._launcher.run.flush()
        if self._error is not None:
            raise self._error

    def _check(self, strip: int, least: int, most: int) -> None:
        """Raise DeployError unless what was downloaded says that so many windows arrived, and were numbers."""
        status, arrived = (int(self._held.arrays["status"][strip, word]) for word in (STATUS, ARRIVED))
        if not least <= arrived <= most:
            raise DeployError("frame: the GPU did not run what was started; start the program again, and report this")
        if status & NOT_FINITE:
            raise NotFiniteError(f"stitch: {MESSAGES[core.NOT_FINITE]}")
        if status:
            raise DeployError(f"stitch: {MESSAGES[2]}")


class _Frame(GpuFrame[Plan]):
    """Windows are handed to the launcher's batches row by row; rows are stitched as soon as all their windows are
    started.
    """

    def __init__(self, launcher: Launcher, size: tuple[int, int], confidence: Confidence) -> None:
        super().__init__(launcher, size, confidence)
        self._stitched = 0  # rows of windows
        self._due = [0]  # windows of the rows handed over, before each and in all
        self._freed: list[tuple[int, CudaEvent]] = []  # the last row of windows that was stitched, and when

    def needs(self, count: int) -> Iterator[CudaEvent]:
        slot, plan = self._held, self._held.plan
        first, last = (bisect_right(self._due, self._started + window) - 1 for window in (0, count - 1))
        for row in range(first, last + 1):
            yield slot.uploaded[self._strip(row)]
        reader = plan.reader(last)
        if reader is not None:
            yield from [event for stitched, event in self._freed if stitched >= reader][:1]

    def started(self, count: int) -> None:
        plan = self._held.plan
        self._started += count
        first = self._stitched
        while self._stitched + 1 < len(self._due) and self._due[self._stitched + 1] <= self._started:
            self._stitched += 1
        if self._stitched > first:
            self._stitch(first, self._stitched - 1)
            if self._launcher.run.lanes > 1 and plan.ring < len(plan.steps):
                self._freed.append((self._stitched - 1, self._gpu.event()))
                self._gpu.mark(self._freed[-1][1], self._gpu.main)
        if self._launcher.on_window:
            self._launcher.on_window(self._started, plan.windows)

    def logits(self) -> bytes | None:
        """What is held of them, once the result was taken."""
        return None if self._used is None else self._launcher.logits(self._used)

    def _stitch(self, first: int, last: int) -> None:
        raise NotImplementedError

    def _strip(self, row: int) -> int:
        """Where the pixels of a row of windows are."""
        return 0 if self._held.plan.whole else row % STRIPS

    def _start(self, step: WindowRow, blank: Sequence[bool] | None = None) -> None:
        """Hand over the windows of a row, whose pixels are on their way.

        Those that are blank are not run.  Logits of 0 stand in for theirs: stitch wants numbers, and nobody looks.
        """
        places = self._launcher.place(self._held, step, self._strip(step.index))
        empty = np.array(blank or [False] * len(places))
        for address in places["logits"][empty]:
            self._gpu.clear(int(address), self._launcher.run.window_bytes)
        self._due.append(self._due[-1] + int((~empty).sum()))
        self._launcher.run.add(list(places[~empty]), self)
        if empty.any():
            self.started(0)

    def _finish(self, strip: int, rows: int, marks: int, windows: int) -> tuple[UInt8, np.ndarray | None]:
        """Wait for the download, count the time, and raise DeployError if the logits were not numbers."""
        slot = self._held
        self._gpu.finish(slot.done[strip])
        self._clock.add_to(self._launcher.timings, marks)
        self._check(strip, windows, windows)
        self._launcher.timings.windows += windows
        return slot.result(strip, rows)


class CudaFrame(_Frame):
    """Holds the whole image.  Starts everything at once; windows that fill no batch wait for the next frame's, or for
    `mask`.

    The copies run beside the kernels of the frame before and the frame after.
    """

    done = False  # the driver is not asked

    def put(self, image: UInt8) -> None:
        with self._working():
            plan = self._launcher.plan(self._size, bytes_a_pixel(image), self._confidence, whole=True)
            self._take(plan)
            copy_pixels(self._held.arrays["image"][0], image)

    def play(self) -> None:
        with self._working():
            slot, launcher = self._held, self._launcher
            slot.upload(0, slot.plan.height)
            self._clock = PartClock(self._gpu, launcher.last)
            self._clock.mark("")
            for step in slot.plan.steps:
                self._start(step)
            if launcher.run.parts:
                launcher.run.flush()

    def mask(self) -> Mask:
        with self._working():
            slot = self._held
            self._flush(slot.plan.windows)
            mask = Mask(*self._finish(0, slot.plan.height, self._clock.count, slot.plan.windows))
        self._release()
        return mask

    def _stitch(self, first: int, last: int) -> None:
        slot, launcher = self._held, self._launcher
        launcher.stitch(slot, first, last, 0)
        whole = self._stitched == len(slot.plan.steps)
        if launcher.run.parts or whole:
            self.mark("stitch" if launcher.run.parts else "engine")
        if whole:
            launcher.last = self._clock.last
            slot.download(0, slot.plan.height)


class CudaStrips(_Frame):
    """Holds the rows at work, so that an image of any height fits.  While a row of windows is worked on, the next is
    brought and started.
    """

    def __init__(self, launcher: Launcher, size: tuple[int, int], confidence: Confidence) -> None:
        super().__init__(launcher, size, confidence)
        self.steps = tuple(launcher.tiling.window_rows(*size))
        self._image: UInt8 | LazyRows = np.empty((0, 0, 3), np.uint8)
        self._brought = 0  # rows of windows
        self._marks: list[int] = []  # of the clock, by row

    def put(self, image: UInt8 | LazyRows) -> None:
        with self._working():
            plan = self._launcher.plan(self._size, bytes_a_pixel(image), self._confidence, whole=False)
            self._take(plan)
            self._image = image

    def advance(self, index: int) -> None:
        with self._working():
            while self._brought <= min(index + STRIPS - 1, len(self.steps) - 1):
                self._bring(self.steps[self._brought])

    def band(self, index: int) -> Band:
        start, end = self.steps[index].rows
        with self._working():
            strip, windows = index % STRIPS, self._due[index + 1] - self._due[index]
            self._flush(self._due[index + 1])
            labels, certainty = self._finish(strip, end - start, self._marks[index], windows)
        if index + 1 == len(self.steps):
            self._release()
            self._image = np.empty((0, 0, 3), np.uint8)
        return Band(start, end, labels, certainty)

    def _bring(self, step: WindowRow) -> None:
        slot, strip = self._held, step.index % STRIPS
        first = slot.plan.first_row(step)
        rows = self._image[first : first + slot.plan.regions["image"].shape[1]]
        copy_pixels(slot.arrays["image"][strip, : rows.shape[0]], rows)
        slot.upload(strip, rows.shape[0])
        if self._stitched == self._brought:  # otherwise the time goes on from the row before
            self._clock.mark("")
        self._brought += 1
        self._start(step, self._blank(step))
        if self._launcher.run.parts:
            self._launcher.run.flush()

    def _blank(self, step: WindowRow) -> list[bool]:
        """Of which windows of a row at hand nobody looks at the labels."""
        image, window = self._image, self._launcher.tiling.labelled
        return [isinstance(image, LazyRows) and image.blank(step.top, left, *window) for left in step.lefts]

    def _stitch(self, first: int, last: int) -> None:
        slot, parts = self._held, self._launcher.run.parts
        for index in range(first, last + 1):
            self._launcher.stitch(slot, index, index, index % STRIPS)
            self.mark("stitch" if parts else "engine")
            self._marks.append(self._clock.count)
            slot.download(index % STRIPS, self.steps[index].rows[1] - self.steps[index].rows[0])


class FrameInStrips(CudaStrips):
    """Stands in for `CudaFrame` where the whole image does not fit: `mask` does the work, and has the memory."""

    def put(self, image: UInt8 | LazyRows) -> None:
        self._image = image

    done = False

    def play(self) -> None:
        """All is done by `mask`."""

    def mask(self) -> Mask:
        if 0 in self._image.shape:
            raise DeployError("frame: its result was taken, or it got no image; take each result once")
        super().put(self._image)
        labels = np.empty(self._size, np.uint8)
        certainty = None
        for step in self.steps:
            self.advance(step.index)
            band = self.band(step.index)
            labels[slice(*step.rows)] = band.labels
            if band.confidence is not None:
                certainty = np.empty(self._size, band.confidence.dtype) if certainty is None else certainty
                certainty[slice(*step.rows)] = band.confidence
        return Mask(labels, certainty)


def bytes_a_pixel(image: UInt8 | LazyRows) -> int:
    """Of its copy on the GPU: 4 where three channels lie in rows of four bytes a pixel, as Pillow has them."""
    return (
        4 if isinstance(image, np.ndarray) and image.shape[2] == 3 and image.strides[1:] == (4, 1) else image.shape[2]
    )


def copy_pixels(target: UInt8, image: UInt8) -> None:
    """image (H, W, C) -> target (H, W, bytes_a_pixel), contiguous.

    A fourth byte of no channel is copied along, but not behind the last pixel of a row, where it may not be there.
    """
    height, width, pixel = target.shape
    if pixel == image.shape[2]:
        np.copyto(target, image)
    else:
        count = pixel * width - 1
        rows = as_strided(image, (height, count), (image.strides[0], 1), writeable=False)
        np.copyto(target.reshape(height, pixel * width)[:, :count], rows)
