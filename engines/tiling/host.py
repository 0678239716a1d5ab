"""The host: gather and stitch in the C core, the engine through its session."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from engines.contract import Float32, Session, UInt8
from engines.errors import DeployError
from engines.spec import THRESHOLD, ModelSpec
from engines.tiling import core
from engines.tiling.device import PARTS, Band, Confidence, LazyRows, Mask, Timings
from engines.tiling.frame import FrameOfStrips
from engines.tiling.inputs import seen, window_input
from engines.tiling.placement import Tiling, WindowRow


class HostDevice:
    """threads: for gather and stitch; 0 means all cores of this process.  batch: windows per run of the engine.

    Windows of all frames under way form batches: one that is not full waits for windows of the next frame, or for a
    result that is asked for; what it then lacks is run for nothing.

    on_window: called after each window with (done, total) of its image.
    """

    name = "host"
    graph = transfers = contexts = ""
    parts = True
    memory = None

    def __init__(self, session: Session, spec: ModelSpec, tiling: Tiling, threads: int = 0, batch: int = 1) -> None:
        self.session, self.spec, self.tiling, self.threads, self.batch = session, spec, tiling, threads, batch
        self.weights = core.blend_weights(tiling.blend, *tiling.labelled)
        self.windows = np.zeros((batch, len(spec.mean), tiling.window_h, tiling.window_w), np.float32)
        self.timings = Timings()
        self.nothing: Float32 | None = None  # logits of a window that nobody looks at
        self.on_window: Callable[[int, int], None] | None = None
        self._waiting: list[tuple[HostStrips, WindowRow, int]] = []  # whose windows lie in `windows`, slot by slot

    @property
    def in_flight(self) -> int:
        """As many as may each have a window in one batch."""
        return self.batch

    def whole_frame(self, height: int, width: int, confidence: Confidence) -> HostFrame:
        return HostFrame(self, height, width, confidence)

    def strips(self, height: int, width: int, confidence: Confidence) -> HostStrips:
        return HostStrips(self, height, width, confidence)

    def held_logits(self) -> None:
        return None

    def first_window(self, image: UInt8) -> Float32:
        self.run()
        self._gather(image, 0, 0, 0)
        return self.windows

    def engine_ms(self, image: UInt8) -> float:
        windows = self.first_window(image)
        begin = time.perf_counter()
        self.session.run(windows)
        return 1e3 * (time.perf_counter() - begin)

    def add(self, strips: HostStrips, image: UInt8 | LazyRows, step: WindowRow, left: int) -> None:
        """Put a window into the batch, and run that when it is full.  The image may be changed once this returns."""
        begin = time.perf_counter()
        self._gather(image, step.top, left, len(self._waiting))
        strips.timings.gather += time.perf_counter() - begin
        self._waiting.append((strips, step, left))
        if len(self._waiting) == self.batch:
            self.run()

    def run(self) -> bool:
        """Run the windows that wait, and hand their logits to their frames, which also get an error of the engine.

        False where none waits.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return False
        begin = time.perf_counter()
        try:
            logits = self.session.run(self.windows)
        except DeployError as error:
            for strips, step, _ in waiting:
                strips.fail(step.index, error)
            return True
        each = (time.perf_counter() - begin) / len(waiting)
        if self.nothing is None:
            self.nothing = np.zeros_like(logits[0])
        for slot, (strips, step, left) in enumerate(waiting):
            strips.timings.engine += each
            strips.timings.windows += 1
            strips.take(step, left, logits[slot].copy())  # the session may reuse its output
        return True

    def _gather(self, image: UInt8 | LazyRows, top: int, left: int, slot: int) -> None:
        window_input(image, top, left, self.spec, self.tiling, out=self.windows[slot], threads=self.threads)


class HostFrame(FrameOfStrips["HostStrips"]):
    """An image of (height, width) pixels.  Its last windows may wait for a batch until the mask is asked for."""

    def __init__(self, device: HostDevice, height: int, width: int, confidence: Confidence) -> None:
        super().__init__(
            height, width, confidence, lambda mask: HostStrips(device, height, width, confidence, into=mask)
        )

    def play(self) -> None:
        self._strips.hand_in()

    @property
    def done(self) -> bool:
        return self._strips.done(len(self._strips.steps) - 1)

    def mask(self) -> Mask:
        self._strips.advance(len(self._strips.steps) - 1)
        return super().mask()


class HostStrips:
    """Runs as it is told to: `advance` returns when its rows are final.

    into: the mask of the whole image, which the bands are then parts of; None for arrays of their own.
    timings: not yet counted in those of the device.
    """

    def __init__(
        self, device: HostDevice, height: int, width: int, confidence: Confidence, into: Mask | None = None
    ) -> None:  # fmt: skip
        self.steps = device.tiling.window_rows(height, width)
        self.timings = Timings()
        self._device = device
        self._size = (height, width)
        self._confidence = bool(confidence)
        self._into = into
        self._windows = ((step, left) for step in self.steps for left in step.lefts)  # that are still to be run
        self._held: dict[int, dict[int, Float32]] = {}  # logits by row of windows and first column
        self._stitched = 0  # rows of windows
        self._failed: tuple[int, DeployError] | None = None
        self._bands: dict[int, Band] = {}
        self._image: UInt8 | LazyRows = np.empty((0, 0, 3), np.uint8)

    def put(self, image: UInt8 | LazyRows) -> None:
        self._image = image

    def band(self, index: int) -> Band:
        return self._bands.pop(index)

    def advance(self, index: int) -> None:
        """Windows of the rows after it fill up the last batch."""
        while not self.done(index):
            if not self._add() and not self._device.run():
                raise DeployError("frame: its windows were lost when the engine was interrupted; start it again")
        self._count()
        if self._failed is not None and self._failed[0] <= index:
            raise self._failed[1]

    def hand_in(self) -> None:
        """All windows, of which the last may wait."""
        while self._failed is None and self._add():
            pass
        self._count()

    def done(self, index: int) -> bool:
        """Whether the rows that the windows of row `index` finish are final, or will never be."""
        return self._stitched > index or self._failed is not None

    def take(self, step: WindowRow, left: int, logits: Float32) -> None:
        """The logits (K, h, w) of a window."""
        device = self._device
        if self._failed is not None:
            return
        row = self._held.setdefault(step.index, {})
        row[left] = logits
        if device.on_window:
            device.on_window(step.index * len(step.lefts) + len(row), len(self.steps) * len(step.lefts))
        while self._failed is None and self._complete(self._stitched):
            begin, index = time.perf_counter(), self._stitched
            try:
                self._stitch(self.steps[index])
            except DeployError as error:
                self.fail(index, error)
            self.timings.stitch += time.perf_counter() - begin

    def _complete(self, index: int) -> bool:
        """Whether all windows of a row have their logits; of a later row they may come sooner, where it has no data."""
        return index < len(self.steps) and len(self._held.get(index, ())) == len(self.steps[index].lefts)

    def fail(self, index: int, error: DeployError) -> None:
        """The rows that the windows of row `index` finish will never be final."""
        if self._failed is None:
            self._failed = (index, error)

    def _add(self) -> bool:
        """Hand in one more window; False where there is none."""
        for step, left in self._windows:
            nothing = self._device.nothing
            if nothing is not None and self._blank(step, left):
                self.take(step, left, nothing)
            else:
                self._device.add(self, self._image, step, left)
            return True
        self._image = np.empty((0, 0, 3), np.uint8)
        return False

    def _blank(self, step: WindowRow, left: int) -> bool:
        image, tiling = self._image, self._device.tiling
        if not isinstance(image, LazyRows):
            return False
        image[seen(step.top, tiling)]  # at hand from now on
        return image.blank(step.top, left, *tiling.labelled)

    def _stitch(self, step: WindowRow) -> None:
        device, rows, into = self._device, slice(*step.rows), self._into
        logits = [self._held[row][left] for row in step.held for left in step.lefts]
        labels, certainty = core.stitch(
            logits, [self.steps[row].top for row in step.held for _ in step.lefts], list(step.lefts) * len(step.held),
            device.tiling.labelled, self._size, rows=step.rows, weights=device.weights,
            labels=None if into is None else into.labels[rows],
            confidence=self._confidence if into is None or into.confidence is None else into.confidence[rows],
            threads=device.threads, threshold=device.spec.threshold or THRESHOLD,
        )  # fmt: skip
        if into is None:
            self._bands[step.index] = Band(*step.rows, labels, certainty)
        self._stitched = step.index + 1
        following = self.steps[self._stitched].held.start if self._stitched < len(self.steps) else self._stitched
        self._held = {row: logits for row, logits in self._held.items() if row >= following}

    def _count(self) -> None:
        own, self.timings = self.timings, Timings()
        for part in (*PARTS, "windows"):
            setattr(self._device.timings, part, getattr(self._device.timings, part) + getattr(own, part))
