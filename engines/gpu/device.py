"""The GPU as a device: gather, engine and stitch without leaving its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from types import TracebackType

import numpy as np

from engines.contract import DeviceSession, Float32, Tensor
from engines.errors import DeployError, GpuLostError
from engines.gpu import kernels
from engines.gpu.context import CudaGpu
from engines.gpu.frames import CudaFrame, CudaStrips
from engines.gpu.graph import CaptureRefusedError, InstantiateRefusedError, missing
from engines.gpu.host_copies import DTYPES
from engines.gpu.layout import ALIGNMENT, Plan
from engines.gpu.memory import CudaMemory
from engines.gpu.pool import Pool, Slot
from engines.model_spec import ModelSpec
from engines.tiling import core
from engines.tiling.device import Frame, Timings, UInt8
from engines.tiling.placement import Tiling, WindowRow

MAX_RECORDED = 64  # windows of an image; a graph of more saves little, and every window's launches stay in memory


class CudaDevice:
    """One engine on one GPU.  Close it before the GPU and the session.

    cubin: the kernels for this GPU, as `compile_kernels` makes them.  log: told (``graph``, why) when frames cannot be
    recorded.  Raises DeployError when the engine does not fit the tiling, or the kernels the GPU.
    """

    name = "cuda"
    in_flight = 2

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, cubin: bytes,
        log: Callable[[str, str], None] = lambda step, text: None,
    ) -> None:  # fmt: skip
        _check(session, tiling, len(spec.classes))
        self.gpu, self.session, self.spec, self.tiling, self._log = gpu, session, spec, tiling, log
        self.timings = Timings()
        self.on_window: Callable[[int, int], None] | None = None
        self.parts = False
        self._no_graph = missing()
        if self._no_graph:
            log("graph", f"frames are not recorded: {self._no_graph}")
        self._recording = False
        self._refused: dict[tuple[int, int, bool], str] = {}  # sizes whose graph the driver did not take, and why
        self._last: Plan | None = None  # of the last frame of a whole image
        self._held: list[CudaMemory] = []
        self.batch, _, *size = session.input.shape
        self.size = (size[0], size[1])
        self._window_bytes = prod(session.output.shape[1:]) * DTYPES[session.output.dtype].itemsize
        self.pool = Pool(gpu, tiling, self.batch, self._window_bytes, self.in_flight)
        self._kernels = gpu.load(cubin)
        try:
            self._windows = self._zeros(prod(session.input.shape) * DTYPES[session.input.dtype].itemsize)
            # Where a batch of logits would start off alignment in the ring, the engine writes here and it is copied.
            aligned = self.batch * self._window_bytes % ALIGNMENT == 0
            self._aside = None if aligned else self._zeros(self.batch * self._window_bytes)
            weights = core.blend_weights(tiling.blend, *self.size)
            self._weights = None if weights is None else (self._uploaded(weights[0]), self._uploaded(weights[1]))
        except BaseException:
            self.close()
            raise

    @property
    def graph(self) -> str:
        """``on`` where frames like the last one are recorded as graphs and replayed, otherwise ``off: `` and why."""
        reason = self._unrecorded(self._last)
        return "on" if reason is None else f"off: {reason}"

    @graph.setter
    def graph(self, value: str) -> None:
        """Anything but ``on`` turns recording off, and is the reason given."""
        self._no_graph = missing() if value == "on" else value.removeprefix("off: ")

    def _unrecorded(self, plan: Plan | None) -> str | None:
        """Why frames of this plan are not recorded, None where they are.  plan: None for any."""
        if self.parts:
            return "the parts are timed one by one"
        if self._no_graph is None and not self.session.capturable:
            return "the engine cannot be recorded"
        if self._no_graph is not None or plan is None:
            return self._no_graph
        if not plan.whole:
            return "the image does not fit, it runs in strips"
        if plan.windows > MAX_RECORDED:
            return f"the image has {plan.windows} windows, and {MAX_RECORDED} at most are recorded"
        return self._refused.get(_size(plan))

    def frame(self, height: int, width: int, confidence: bool, whole: bool) -> Frame:
        slot = self.pool.take(height, width, confidence, whole)
        if whole:
            self._last = slot.plan
        return CudaFrame(self, slot) if slot.plan.whole else CudaStrips(self, slot)

    def first_window(self, image: UInt8) -> Float32:
        rows = np.ascontiguousarray(image[: self.size[0]])
        strip = self.gpu.allocate(rows.nbytes)
        try:
            self.gpu.upload(strip.address, rows)
            self._gather(strip.address, image.shape[:2], 0, 0, [0])
            windows = np.empty(self.session.input.shape, DTYPES[self.session.input.dtype])
            self.gpu.download(windows, self._windows)
        finally:
            strip.free()
        widened: Float32 = windows.astype(np.float32)
        return widened

    def start(self, slot: Slot) -> None:
        """Start a whole frame on main."""
        if self._unrecorded(slot.plan) or not slot.warm:
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
        self.gpu.replay(slot.graph)
        if self.on_window:
            self.on_window(slot.plan.windows, slot.plan.windows)

    def _refuse(self, plan: Plan, error: CaptureRefusedError) -> None:
        """Remember it, for this size where the driver did not take its graph, otherwise for good."""
        if isinstance(error, InstantiateRefusedError):
            self._refused[_size(plan)] = str(error)
            self._log("graph", f"images of {plan.width}x{plan.height} are not recorded: {error}")
        else:
            self._no_graph = str(error)
            self._log("graph", f"frames are not recorded: {error}")

    def start_row(self, slot: Slot, step: WindowRow) -> None:
        """Start a row of windows, and the rows of labels that it finishes, on main.  The slot holds only those."""
        self.gpu.clear(slot.addresses["status"], slot.plan.regions["status"].bytes)
        self._start_row(slot, step)

    def close(self) -> None:
        """Free everything.  Does not raise after the GPU was lost."""
        with suppress(DeployError):
            self.gpu.synchronize()
        self.pool.close()
        while self._held:
            self._held.pop().free()
        self._kernels.free()

    def __enter__(self) -> CudaDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_rows(self, slot: Slot) -> None:
        self.gpu.clear(slot.addresses["status"], slot.plan.regions["status"].bytes)
        for step in slot.plan.steps:
            self._start_row(slot, step)

    def _start_row(self, slot: Slot, step: WindowRow) -> None:
        plan, columns = slot.plan, len(step.lefts)
        first_row = 0 if plan.whole else step.top
        row_at = slot.addresses["logits"] + step.index % plan.ring * plan.pitch * self._window_bytes
        for start in range(0, columns, self.batch):
            some = step.lefts[start : start + self.batch]  # what is left in a short batch is run for nothing
            self._gather(slot.addresses["image"], (plan.height, plan.width), first_row, step.top, some)
            self._mark(slot, "gather")
            self._enqueue(row_at + start * self._window_bytes)
            self._mark(slot, "engine")
            if self.on_window and not self._recording:
                self.on_window(step.index * columns + start + len(some), plan.windows)
        self._stitch(slot, step)
        self._mark(slot, "stitch")

    def _gather(self, image: int, size: tuple[int, ...], first_row: int, top: int, lefts: Sequence[int]) -> None:
        """image: where row `first_row` of the image, whose size is (height, width), lies."""
        launch = kernels.gather(
            image, size[0], size[1], (3 * size[1], 3, 1), top, lefts, self.size, self.spec.mean, self.spec.std,
            self.spec.order, self.tiling.padding, self._windows, DTYPES[self.session.input.dtype].name, first_row,
        )  # fmt: skip
        self.gpu.launch(self._kernels, launch)

    def _enqueue(self, target: int) -> None:
        try:
            self.session.enqueue(self._windows, self._aside or target, self.gpu.stream)
        except GpuLostError:
            raise
        except DeployError:
            if not self._recording:
                self.gpu.synchronize()  # a lost context is told as such, whatever the SDK says
            raise
        if self._aside is not None:
            self.gpu.copy(target, self._aside, self.batch * self._window_bytes)

    def _stitch(self, slot: Slot, step: WindowRow) -> None:
        plan, (start, _) = slot.plan, step.rows
        offset, confidence = start * plan.width if plan.whole else 0, slot.addresses.get("confidence")
        classes, low = self.session.output.shape[1], self.session.output.shape[2:]
        launch = kernels.stitch(
            slot.addresses["logits"], DTYPES[self.session.output.dtype].name, (low[0], low[1]), classes,
            plan.ring, plan.pitch, self.tiling, (plan.height, plan.width), step.rows, step.held, self._weights,
            slot.addresses["labels"] + offset, plan.width,
            None if confidence is None else confidence + 4 * offset, plan.width, slot.addresses["status"],
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


def _check(session: DeviceSession, tiling: Tiling, classes: int) -> None:
    source, target = session.input, session.output
    window = (tiling.window_h, tiling.window_w)
    if len(source.shape) != 4 or source.shape[0] < 1 or source.shape[1:] != (3, *window):
        raise DeployError(
            f"engine: got input {_say(source)}, expected (N, 3, {window[0]}, {window[1]}); build it again"
        )
    if source.shape[0] > kernels.MAX_LEFTS:
        raise DeployError(f"engine: got a batch of {source.shape[0]} windows, expected {kernels.MAX_LEFTS} at most")
    if len(target.shape) != 4 or target.shape[:2] != (source.shape[0], classes) or min(target.shape) < 1:
        raise DeployError(
            f"engine: got output {_say(target)}, expected ({source.shape[0]}, {classes}, h, w); build it again"
        )
    for tensor in (source, target):
        if tensor.dtype not in DTYPES:
            raise DeployError(f"engine: got {_say(tensor)}, expected one of {', '.join(DTYPES)}; build it again")


def _say(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.shape} {tensor.dtype}"
