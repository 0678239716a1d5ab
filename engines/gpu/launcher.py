"""What a frame starts on a GPU: windows gathered, inferred and stitched, row by row or all recorded as one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod

import numpy as np

from engines.contract import DeviceSession, Float32, Log, UInt8
from engines.errors import DeployError, GpuLostError
from engines.gpu import kernels
from engines.gpu.context import CudaGpu
from engines.gpu.graph import CaptureRefusedError, InstantiateRefusedError, missing
from engines.gpu.host_copies import DTYPES
from engines.gpu.kernels import NOT_RUN
from engines.gpu.layout import ALIGNMENT, Plan
from engines.gpu.memory import CudaMemory
from engines.gpu.pool import Slot
from engines.spec import THRESHOLD, ModelSpec
from engines.tiling import core
from engines.tiling.device import Timings
from engines.tiling.placement import Tiling, WindowRow

MAX_RECORDED = 64  # windows of an image; a graph of more saves little, and every window's launches stay in memory


class Launcher:
    """Starts the work of one frame after another on main.  Holds what they all use: a batch of windows, the weights.

    timings, parts, on_window: see `engines.tiling.device.Device`.  log: told (``graph``, why) when frames cannot be
    recorded.  Raises DeployError when the GPU does not take the kernels, or has no memory.
    """

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, cubin: bytes,
        log: Log,
    ) -> None:  # fmt: skip
        self.gpu, self._session, self._spec, self._tiling, self._log = gpu, session, spec, tiling, log
        self.timings = Timings()
        self.on_window: Callable[[int, int], None] | None = None
        self.parts = False
        self._no_graph = missing()
        if self._no_graph:
            log("graph", f"frames are not recorded: {self._no_graph}")
        self._recording = False
        self._refused: dict[tuple[int, int, bool], str] = {}  # sizes whose graph the driver did not take, and why
        self._held: list[CudaMemory] = []
        self.batch, _, *size = session.input.shape
        self._size, self.channels = (size[0], size[1]), len(spec.mean)
        self.window_bytes = prod(session.output.shape[1:]) * DTYPES[session.output.dtype].itemsize
        self._kernels = gpu.load(cubin)
        try:
            self._windows = self._zeros(prod(session.input.shape) * DTYPES[session.input.dtype].itemsize)
            # Where a batch of logits would start off alignment in the ring, the engine writes here and it is copied.
            aligned = self.batch * self.window_bytes % ALIGNMENT == 0
            self._aside = None if aligned else self._zeros(self.batch * self.window_bytes)
            weights = core.blend_weights(tiling.blend, *tiling.labelled)
            self._weights = None if weights is None else (self._uploaded(weights[0]), self._uploaded(weights[1]))
        except BaseException:
            self.close()
            raise

    def unrecorded(self, plan: Plan | None) -> str | None:
        """Why frames of this plan are not recorded, None where they are.  plan: None for any."""
        if self.parts:
            return "the parts are timed one by one"
        if self._no_graph is None and not self._session.capturable:
            return "the engine cannot be recorded"
        if self._no_graph is not None or plan is None:
            return self._no_graph
        if not plan.whole:
            return "the image does not fit, it runs in strips"
        if plan.windows > MAX_RECORDED:
            return f"the image has {plan.windows} windows, and {MAX_RECORDED} at most are recorded"
        return self._refused.get(_size(plan))

    def start(self, slot: Slot) -> None:
        """Start a whole frame."""
        if self.unrecorded(slot.plan) or not slot.warm:
            self._start_rows(slot)
            slot.warm = True
            return
        if slot.graph is None:
            try:
                self._recording = True
                slot.graph = self.gpu.record(lambda: self._start_rows(slot))
            except CaptureRefusedError as error:
                self._refuse(slot.plan, error)
                self._recording = False
                self._start_rows(slot)
                return
            finally:
                self._recording = False
        # The graph itself clears the status.  Set from outside of it, a graph that does not run cannot pass for one
        # that found nothing, and leave the mask of the frame before for this one's.
        self.gpu.clear(slot.addresses["status"], slot.plan.regions["status"].bytes, NOT_RUN & 0xFF)
        self.gpu.replay(slot.graph)
        if self.on_window:
            self.on_window(slot.plan.windows, slot.plan.windows)

    def start_row(self, slot: Slot, step: WindowRow) -> None:
        """Start a row of windows, and the rows of labels that it finishes.  The slot holds only those."""
        self.gpu.clear(slot.addresses["status"], slot.plan.regions["status"].bytes)
        self._start_row(slot, step)

    def logits(self, slot: Slot) -> bytes:
        """Of the rows of windows that a slot holds after a frame, in the order of its ring, as the engine wrote."""
        plan, columns = slot.plan, len(slot.plan.steps[0].lefts)
        rows = np.empty((min(plan.ring, len(plan.steps)), columns * self.window_bytes), np.uint8)
        for index, row in enumerate(rows):  # what lies behind the last window of a row fills up a batch
            self.gpu.download(row, slot.addresses["logits"] + index * plan.pitch * self.window_bytes)
        return rows.tobytes()

    def first_window(self, image: UInt8) -> Float32:
        """What `Device.first_window` promises."""
        rows = np.ascontiguousarray(image[: self._size[0]])
        strip = self.gpu.allocate(rows.nbytes)
        try:
            self.gpu.upload(strip.address, rows)
            self._gather(strip.address, image.shape[:2], first_row=0, top=0, lefts=[0])
            windows = np.empty(self._session.input.shape, DTYPES[self._session.input.dtype])
            self.gpu.download(windows, self._windows)
        finally:
            strip.free()
        widened: Float32 = windows.astype(np.float32)
        return widened

    def close(self) -> None:
        """Wait for what was started, and free everything.  Does not raise after the GPU was lost."""
        with suppress(DeployError):
            self.gpu.synchronize()
        while self._held:
            self._held.pop().free()
        self._kernels.free()

    def _refuse(self, plan: Plan, error: CaptureRefusedError) -> None:
        """Remember it, for this size where the driver did not take its graph, otherwise for good."""
        if isinstance(error, InstantiateRefusedError):
            self._refused[_size(plan)] = str(error)
            self._log("graph", f"images of {plan.width}x{plan.height} are not recorded: {error}")
        else:
            self._no_graph = str(error)
            self._log("graph", f"frames are not recorded: {error}")

    def _start_rows(self, slot: Slot) -> None:
        self.gpu.clear(slot.addresses["status"], slot.plan.regions["status"].bytes)
        for step in slot.plan.steps:
            self._start_row(slot, step)

    def _start_row(self, slot: Slot, step: WindowRow) -> None:
        plan, columns = slot.plan, len(step.lefts)
        first_row = plan.first_row(step)
        row_at = slot.addresses["logits"] + step.index % plan.ring * plan.pitch * self.window_bytes
        for start in range(0, columns, self.batch):
            some = step.lefts[start : start + self.batch]  # what is left in a short batch is run for nothing
            self._gather(
                slot.addresses["image"], (plan.height, plan.width), first_row=first_row, top=step.top, lefts=some
            )
            self._mark(slot, "gather")
            self._enqueue(row_at + start * self.window_bytes)
            self._mark(slot, "engine")
            if self.on_window and not self._recording:
                self.on_window(step.index * columns + start + len(some), plan.windows)
        self._stitch(slot, step)
        self._mark(slot, "stitch")

    def _gather(self, image: int, size: tuple[int, ...], first_row: int, top: int, lefts: Sequence[int]) -> None:
        """image: where row `first_row` of the image, whose size is (height, width), lies."""
        launch = kernels.gather(
            image, height=size[0], width=size[1], strides=(self.channels * size[1], self.channels, 1), top=top,
            lefts=lefts, window=self._size, mean=self._spec.mean, std=self._spec.std, order=self._spec.order,
            padding=self._tiling.padding, out=self._windows, dtype=DTYPES[self._session.input.dtype].name,
            first_row=first_row, margin=self._tiling.margin,
        )  # fmt: skip
        self.gpu.launch(self._kernels, launch)

    def _enqueue(self, target: int) -> None:
        try:
            self._session.enqueue(self._windows, self._aside or target, self.gpu.stream)
        except GpuLostError:
            raise
        except DeployError:
            if not self._recording:
                self.gpu.synchronize()  # a lost context is told as such, whatever the SDK says
            raise
        if self._aside is not None:
            self.gpu.copy(target, self._aside, self.batch * self.window_bytes)

    def _stitch(self, slot: Slot, step: WindowRow) -> None:
        plan, (start, _) = slot.plan, step.rows
        offset, confidence = start * plan.width if plan.whole else 0, slot.addresses.get("confidence")
        output = self._session.output
        launch = kernels.stitch(
            slot.addresses["logits"], DTYPES[output.dtype].name, low=(output.shape[2], output.shape[3]),
            classes=output.shape[1], ring=plan.ring, pitch=plan.pitch, tiling=self._tiling,
            size=(plan.height, plan.width), rows=step.rows, held=step.held, weights=self._weights,
            labels=slot.addresses["labels"] + offset, labels_stride=plan.width,
            confidence=None if confidence is None else confidence + 4 * offset, confidence_stride=plan.width,
            status=slot.addresses["status"], threshold=self._spec.threshold or THRESHOLD,
        )  # fmt: skip
        self.gpu.launch(self._kernels, launch)

    def _mark(self, slot: Slot, part: str) -> None:
        if self.parts:
            slot.clock.mark(part)

    def _zeros(self, size: int) -> int:
        memory = self.gpu.allocate(size)
        self._held.append(memory)
        self.gpu.clear(memory.address, size)
        return memory.address

    def _uploaded(self, array: Float32) -> int:
        memory = self.gpu.allocate(array.nbytes)
        self._held.append(memory)
        self.gpu.upload(memory.address, array)
        return memory.address


def _size(plan: Plan) -> tuple[int, int, bool]:
    return plan.height, plan.width, "confidence" in plan.regions
