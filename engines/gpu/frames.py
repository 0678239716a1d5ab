"""Frames on a GPU: they hold the whole image, or only the rows at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from engines.contract import UInt8
from engines.errors import DeployError, NotFiniteError
from engines.gpu.kernels import NOT_FINITE, NOT_RUN
from engines.gpu.launcher import Launcher
from engines.gpu.pool import IN_FLIGHT, Slot
from engines.tiling import core
from engines.tiling.core import MESSAGES
from engines.tiling.device import Band, Mask


class _Frame:
    """The use of a slot by one image; it ends with the result, with an error, or when a later image needs the slot."""

    def __init__(self, launcher: Launcher, slot: Slot) -> None:
        self.steps = slot.plan.steps
        self._launcher, self._slot, self._gpu = launcher, slot, launcher.gpu
        slot.owner = self

    def _check_mine(self) -> None:
        if self._slot.owner is not self:
            raise DeployError(
                "frame: its memory went to a later image, or its result was taken; "
                f"take each result once, and have at most {IN_FLIGHT} images under way"
            )

    def _release(self) -> None:
        if self._slot.owner is self:
            self._slot.owner = None

    @contextmanager
    def _working(self) -> Iterator[None]:
        """After an error the slot is free again, once nothing that was started uses it any more."""
        self._check_mine()
        try:
            yield
        except BaseException:
            with suppress(DeployError):  # the error at hand is the one to tell
                self._gpu.synchronize()
            self._release()
            raise

    def _wait(self) -> None:
        """Wait for the download, count the time, and raise DeployError if the logits were not numbers."""
        slot = self._slot
        self._gpu.finish(slot.done)
        slot.clock.add_to(self._launcher.timings)
        status = int(slot.arrays["status"][0])
        if status == NOT_RUN:
            raise DeployError("frame: the GPU did not run what was started; start the program again, and report this")
        if status & NOT_FINITE:
            raise NotFiniteError(f"stitch: {MESSAGES[core.NOT_FINITE]}")
        if status:
            raise DeployError(f"stitch: {MESSAGES[2]}")


class CudaFrame(_Frame):
    """Holds the whole image.  Starts everything at once, as a recorded graph where that is possible.

    The copies run beside the kernels of the frame before and the frame after.
    """

    done = False  # the driver is not asked

    def put(self, image: UInt8) -> None:
        with self._working():
            np.copyto(self._slot.arrays["image"], image)

    def play(self) -> None:
        with self._working():
            slot, gpu = self._slot, self._gpu
            slot.upload(slot.plan.height, gpu.up)
            gpu.mark(slot.uploaded, gpu.up)
            gpu.follow(gpu.main, slot.uploaded)
            slot.clock.start()
            self._launcher.start(slot)
            if not self._launcher.parts:
                slot.clock.mark("engine")
            gpu.mark(slot.computed, gpu.main)
            gpu.follow(gpu.down, slot.computed)
            slot.download(slot.plan.height, gpu.down)

    def mask(self) -> Mask:
        with self._working():
            self._wait()
            self._launcher.timings.windows += self._slot.plan.windows
            mask = Mask(*self._slot.result(self._slot.plan.height))
        self._release()
        return mask


class CudaStrips(_Frame):
    """Holds the rows at work, so that an image of any height fits.  One row of windows after another."""

    def __init__(self, launcher: Launcher, slot: Slot) -> None:
        super().__init__(launcher, slot)
        self._image: UInt8 = np.empty((0, 0, 3), np.uint8)

    def put(self, image: UInt8) -> None:
        self._check_mine()
        self._image = image

    def advance(self, index: int) -> None:
        with self._working():
            step, slot, gpu = self.steps[index], self._slot, self._gpu
            first = slot.plan.first_row(step)
            rows = self._image[first : first + slot.plan.regions["image"].shape[0]]
            np.copyto(slot.arrays["image"][: rows.shape[0]], rows)
            slot.upload(rows.shape[0], gpu.main)
            slot.clock.start()
            self._launcher.start_row(slot, step)
            if not self._launcher.parts:
                slot.clock.mark("engine")
            slot.download(step.rows[1] - step.rows[0], gpu.main)

    def band(self, index: int) -> Band:
        start, end = self.steps[index].rows
        with self._working():
            self._wait()
            self._launcher.timings.windows += len(self.steps[index].lefts)
            labels, certainty = self._slot.result(end - start)
        if index + 1 == len(self.steps):
            self._release()
            self._image = np.empty((0, 0, 3), np.uint8)
        return Band(start, end, labels, certainty)


class FrameInStrips(CudaStrips):
    """Stands in for `CudaFrame` where the whole image does not fit: `mask` does the work."""

    done = False

    def play(self) -> None:
        self._check_mine()

    def mask(self) -> Mask:
        height, width = self._slot.plan.height, self._slot.plan.width
        labels = np.empty((height, width), np.uint8)
        certainty = np.empty((height, width), np.float32) if "confidence" in self._slot.plan.regions else None
        for step in self.steps:
            self.advance(step.index)
            band = self.band(step.index)
            labels[slice(*step.rows)] = band.labels
            if certainty is not None:
                certainty[slice(*step.rows)] = band.confidence
        return Mask(labels, certainty)
