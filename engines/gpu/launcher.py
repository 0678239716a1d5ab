"""What all frames of a device use: the batches of windows, the kernels, the weights, the memory of images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from engines.contract import DeviceSession, Float32, Log, UInt8
from engines.errors import DeployError
from engines.gpu import kernels
from engines.gpu.context import CudaGpu, GpuMemoryError
from engines.gpu.host_copies import DTYPES
from engines.gpu.layout import MemoryLayout, Plan
from engines.gpu.memory import CudaEvent, CudaMemory
from engines.gpu.pool import IN_FLIGHT, L, Pool, Slot
from engines.gpu.windows import Place, Windows
from engines.spec import THRESHOLD, ModelSpec
from engines.tiling import core
from engines.tiling.device import Confidence, Timings
from engines.tiling.placement import Tiling, WindowRow

T = TypeVar("T")
MEMORY = "an image wanted the memory of the second"


class Launcher:
    """timings, on_window: see `engines.tiling.device.Device`.  log: told (``graph``, why) when nothing can be recorded.

    last: the event of the last work of the frame before.  Raises DeployError when the GPU does not take the kernels, or
    has no memory.
    """

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, cubin: bytes, log: Log
    ) -> None:  # fmt: skip
        self.gpu, self.output, self.spec, self.tiling = gpu, session.output, spec, tiling
        self.timings, self.pool = Timings(), Pool(gpu)
        self.on_window: Callable[[int, int], None] | None = None
        self.last: CudaEvent | None = None
        self._held: list[CudaMemory] = []
        self.code = gpu.load(cubin)
        self._bytes = gpu.has(self.code, kernels.CONFIDENCE_KERNEL)
        self.staged = not gpu.info.coherent
        self.windows: Windows | None = None
        try:
            weights = core.blend_weights(tiling.blend, *tiling.labelled)
            self.weights = None if weights is None else (self._uploaded(weights[0]), self._uploaded(weights[1]))
            self.windows = Windows(gpu, session=session, spec=spec, tiling=tiling, code=self.code, log=log)
        except BaseException:
            self.close()
            raise

    @property
    def run(self) -> Windows:
        assert self.windows is not None
        return self.windows

    def given(self, confidence: Confidence) -> Confidence:
        """What comes where `confidence` is wanted: of kernels that make no bytes, float32."""
        return confidence if self._bytes else bool(confidence)

    def plan(self, size: tuple[int, int], pixel: int, confidence: Confidence, whole: bool) -> Plan:
        return Plan.of(
            self.tiling, size=size, pixel=pixel, confidence=self.given(confidence), whole=whole, ahead=self.run.ahead,
            window_bytes=self.run.window_bytes, shared=self.gpu.info.integrated, staged=self.staged,
        )  # fmt: skip

    def whole(self, plan: Plan) -> bool:
        """Whether images are held as a whole: as many as are under way at once must fit."""
        return self.most(plan) >= IN_FLIGHT

    def most(self, plan: MemoryLayout) -> int:
        """How many such frames may be under way at once.  Spare contexts go where they stand in the way of two."""
        found, run = self.pool.most(plan), self.run
        if found < IN_FLIGHT and run.spare and self.pool.most(plan, run.spare_bytes) > found:
            run.give_back(MEMORY)
            found = self.pool.most(plan)
        return found

    def take(self, plan: L, owner: object) -> Slot[L]:
        """See `Pool.take`.  Spare contexts go where there is no memory otherwise."""
        try:
            return self.pool.take(plan, owner)
        except GpuMemoryError:
            if not self.run.spare:
                raise
        self.run.give_back(MEMORY)
        return self.pool.take(plan, owner)

    def in_flight(self, plan: Plan) -> int:
        """How many frames are under way at once: two, or as many as fill the batches at work and one to come."""
        wanted = -(-(self.run.ahead + self.run.batch) // plan.windows)
        return IN_FLIGHT if wanted <= IN_FLIGHT else max(IN_FLIGHT, min(wanted, self.most(plan)))

    def place(self, slot: Slot[Plan], step: WindowRow, strip: int) -> Any:
        """Records of the windows of a row, whose pixels are in `strip`."""
        plan = slot.plan
        row = slot.addresses["logits"] + step.index % plan.ring * plan.columns * self.run.window_bytes
        status = slot.address("status", strip)
        return kernels.place(
            slot.address("image", strip), (plan.height, plan.width), (plan.pixel * plan.width, plan.pixel, 1), step.top,
            step.lefts, self.run.size, logits=[row + i * self.run.window_bytes for i in range(plan.columns)],
            arrived=status + 4, first_row=plan.first_row(step), margin=self.tiling.margin,
        )  # fmt: skip

    def stitch(self, slot: Slot[Plan], first: int, last: int, strip: int) -> None:
        """The rows of labels that the rows of windows `first` to `last` finish."""
        plan = slot.plan
        rows = plan.steps[first].rows[0], plan.steps[last].rows[1]
        held = range(plan.steps[first].held.start, last + 1)
        offset = rows[0] * plan.width if plan.whole else 0
        floats = next((name for name in ("certainty", "confidence") if name in plan.regions), None)
        confidence = None if floats is None else slot.address(floats, strip)
        launch = kernels.stitch(
            slot.addresses["logits"], DTYPES[self.output.dtype].name, (self.output.shape[2], self.output.shape[3]),
            classes=self.output.shape[1], ring=plan.ring, pitch=plan.columns, tiling=self.tiling,
            size=(plan.height, plan.width), rows=rows, held=held, weights=self.weights,
            labels=slot.address("labels", strip) + offset, labels_stride=plan.width,
            confidence=None if confidence is None else confidence + 4 * offset, confidence_stride=plan.width,
            status=slot.address("status", strip), threshold=self.spec.threshold or THRESHOLD,
        )  # fmt: skip
        self.gpu.launch(self.code, launch)
        if floats == "certainty":
            self.to_bytes(slot, strip, rows, offset)

    def to_bytes(self, slot: Slot[Any], strip: int, rows: tuple[int, int], offset: int) -> None:
        """Confidences of rows [r0, r1), which begin at `offset` in their region."""
        width = slot.plan.regions["confidence"].shape[2]
        certainty, out = (slot.address(name, strip) for name in ("certainty", "confidence"))
        count = (rows[1] - rows[0]) * width
        self.gpu.launch(self.code, kernels.confidence_bytes(certainty + 4 * offset, out + offset, count))

    def logits(self, slot: Slot[Plan]) -> bytes | None:
        """Of the rows of windows that a slot holds after a frame, in the order of its ring, as the engine wrote; None
        where its memory went to another frame.
        """
        if not self.pool.untouched(slot):
            return None
        region = slot.plan.regions["logits"]
        held = np.empty(region.bytes, np.uint8)
        self.gpu.download(held, slot.blocks.device.address + (region.device or 0))
        return held.tobytes()

    def first_window(self, image: UInt8) -> Float32:
        """What `Device.first_window` promises."""
        return self._of_first(image, self.run.first)

    def engine_ms(self, image: UInt8) -> float:
        """What `Device.engine_ms` promises."""
        return self._of_first(image, self.run.engine_ms)

    def _of_first(self, image: UInt8, work: Callable[[Place], T]) -> T:
        """What `work` finds for the window at the top left."""
        rows = image[: self.run.size[0]]
        strip = self.gpu.allocate(rows.nbytes)
        try:
            self.gpu.upload(strip.address, rows.copy())
            channels = image.shape[2]
            strides = (channels * image.shape[1], channels, 1)
            return work(
                kernels.place(
                    strip.address, (image.shape[0], image.shape[1]), strides, 0, [0], self.run.size, logits=[0],
                    arrived=0, margin=self.tiling.margin,
                )
            )  # fmt: skip
        finally:
            strip.free()

    def close(self) -> None:
        """Wait for what was started, and free everything.  Does not raise after the GPU was lost."""
        if self.windows is not None:
            self.windows.close()
        with suppress(DeployError):
            self.gpu.synchronize()
        self.last = None
        self.pool.close()
        while self._held:
            self._held.pop().free()
        self.code.free()

    def _uploaded(self, array: Float32) -> int:
        memory = self.gpu.allocate(array.nbytes)
        self._held.append(memory)
        self.gpu.upload(memory.address, array)
        return memory.address
