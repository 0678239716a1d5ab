"""The host: gather and stitch in the C core, the engine through its session."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from engines.contract import Float32, Session, UInt8
from engines.spec import THRESHOLD, ModelSpec
from engines.tiling import core
from engines.tiling.device import Band, Mask, Timings
from engines.tiling.frame import FrameOfStrips
from engines.tiling.inputs import window_input
from engines.tiling.placement import Tiling, WindowRow


class HostDevice:
    """threads: for gather and stitch; 0 means all cores of this process.  batch: windows per run of the engine.

    on_window: called after each window with (done, total) of the current image.
    """

    name = "host"
    graph = transfers = ""
    in_flight = 1
    parts = True

    def __init__(self, session: Session, spec: ModelSpec, tiling: Tiling, threads: int = 0, batch: int = 1) -> None:
        self.session, self.spec, self.tiling, self.threads, self.batch = session, spec, tiling, threads, batch
        self.weights = core.blend_weights(tiling.blend, *tiling.labelled)
        self.windows = np.zeros((batch, len(spec.mean), tiling.window_h, tiling.window_w), np.float32)
        self.timings = Timings()
        self.on_window: Callable[[int, int], None] | None = None

    def whole_frame(self, height: int, width: int, confidence: bool) -> HostFrame:
        return HostFrame(self, height, width, confidence)

    def strips(self, height: int, width: int, confidence: bool) -> HostStrips:
        return HostStrips(self, height, width, confidence)

    def held_logits(self) -> None:
        return None

    def first_window(self, image: UInt8) -> Float32:
        self.gather(image, 0, 0, 0)
        return self.windows

    def engine_ms(self, image: UInt8) -> float:
        windows = self.first_window(image)
        begin = time.perf_counter()
        self.session.run(windows)
        return 1e3 * (time.perf_counter() - begin)

    def gather(self, image: UInt8, top: int, left: int, slot: int) -> None:
        """Fill window `slot` of the batch."""
        window_input(image, top, left, self.spec, self.tiling, out=self.windows[slot], threads=self.threads)


class HostFrame(FrameOfStrips["HostStrips"]):
    """An image of (height, width) pixels."""

    def __init__(self, device: HostDevice, height: int, width: int, confidence: bool) -> None:
        super().__init__(
            height, width, confidence, lambda mask: HostStrips(device, height, width, confidence, into=mask)
        )


class HostStrips:
    """Runs as it is told to: `advance` returns when its rows are final.

    into: the mask of the whole image, which the bands are then parts of; None for arrays of their own.
    """

    def __init__(
        self, device: HostDevice, height: int, width: int, confidence: bool, into: Mask | None = None
    ) -> None:  # fmt: skip
        self.steps = device.tiling.window_rows(height, width)
        self._device = device
        self._size = (height, width)
        self._confidence = confidence
        self._into = into
        self._held: dict[int, list[Float32]] = {}
        self._band: Band | None = None
        self._image: UInt8 = np.empty((0, 0, 3), np.uint8)

    def put(self, image: UInt8) -> None:
        self._image = image

    def band(self, index: int) -> Band:
        assert self._band is not None
        assert self._band.row0 == self.steps[index].rows[0]
        return self._band

    def advance(self, index: int) -> None:
        step = self.steps[index]
        self._held[index] = self._run(step)
        self._stitch(step)
        self._held = {row: logits for row, logits in self._held.items() if row >= self._next(index)}

    def _next(self, index: int) -> int:
        """The first row of windows that the next row of windows is stitched with."""
        return self.steps[index + 1].held.start if index + 1 < len(self.steps) else index + 1

    def _run(self, step: WindowRow) -> list[Float32]:
        """The logits (K, h, w) of a row of windows."""
        device, lefts, out = self._device, step.lefts, []
        for start in range(0, len(lefts), device.batch):
            some = lefts[start : start + device.batch]  # what is left in a short batch is run for nothing
            begin = time.perf_counter()
            for slot, left in enumerate(some):
                device.gather(self._image, step.top, left, slot)
            gathered = time.perf_counter()
            logits = device.session.run(device.windows)
            out += [logits[slot].copy() for slot in range(len(some))]  # the session may reuse its output
            device.timings.gather += gathered - begin
            device.timings.engine += time.perf_counter() - gathered
            device.timings.windows += len(some)
            if device.on_window:
                device.on_window(step.index * len(lefts) + start + len(some), len(self.steps) * len(lefts))
        return out

    def _stitch(self, step: WindowRow) -> None:
        begin = time.perf_counter()
        device, rows, into = self._device, slice(*step.rows), self._into
        logits = [window for row in step.held for window in self._held[row]]
        labels, certainty = core.stitch(
            logits, [self.steps[row].top for row in step.held for _ in step.lefts], list(step.lefts) * len(step.held),
            device.tiling.labelled, self._size, rows=step.rows, weights=device.weights,
            labels=None if into is None else into.labels[rows],
            confidence=self._confidence if into is None or into.confidence is None else into.confidence[rows],
            threads=device.threads, threshold=device.spec.threshold or THRESHOLD,
        )  # fmt: skip
        self._band = Band(*step.rows, labels, certainty)
        device.timings.stitch += time.perf_counter() - begin
