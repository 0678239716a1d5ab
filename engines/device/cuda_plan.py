"""The memory of one frame on a GPU: how much, and the memory itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from engines.device.base import Timings
from engines.device.cuda import CudaGpu
from engines.device.cuda_memory import CudaMemory, HostBuffer
from engines.device.graph import Graph
from engines.tiling import Tiling, WindowRow

STATUS_BYTES = 4  # one int32
_Held = TypeVar("_Held", CudaMemory, HostBuffer)


@dataclass(frozen=True)
class Plan:
    """What the frames of one image size hold.

    whole: the image and its labels, in one piece; otherwise only the rows at work.
    ring: rows of windows whose logits are held.  pitch: windows in each, rounded up to whole batches, because the
    engine writes whole batches.  window_bytes: the logits of one window.
    image_rows, label_rows: rows of the image, and of its labels.
    """

    height: int
    width: int
    confidence: bool
    whole: bool
    steps: tuple[WindowRow, ...]
    ring: int
    pitch: int
    window_bytes: int
    image_rows: int
    label_rows: int

    @classmethod
    def of(
        cls, tiling: Tiling, size: tuple[int, int], confidence: bool, whole: bool, batch: int, window_bytes: int
    ) -> Plan:
        """size: (height, width) of the image.  batch: windows per run of the engine."""
        height, width = size
        steps = tuple(tiling.window_rows(height, width))
        return cls(
            height, width, confidence, whole, steps,
            ring=max(len(step.held) for step in steps),
            pitch=-(-len(steps[0].lefts) // batch) * batch,
            window_bytes=window_bytes,
            image_rows=height if whole else min(tiling.window_h, height),
            label_rows=height if whole else max(end - start for start, end in (step.rows for step in steps)),
        )  # fmt: skip

    @property
    def windows(self) -> int:
        return len(self.steps) * len(self.steps[0].lefts)

    @property
    def logit_bytes(self) -> int:
        return self.ring * self.pitch * self.window_bytes

    @property
    def bytes(self) -> int:
        """What a frame takes of the GPU's memory; where the CPU shares that, in place of a copy."""
        pixel = 1 + (4 if self.confidence else 0)
        return self.width * (3 * self.image_rows + pixel * self.label_rows) + self.logit_bytes + STATUS_BYTES


class Slot:
    """The memory of one frame, used by one image after another.

    image, labels, confidence: on the host.  image_at, labels_at, confidence_at: where the kernels find them, which is
    the same memory where the GPU shares it with the CPU.  logits, status: on the GPU only.
    owner: the frame that uses it, or None.  warm: whether everything has run once.  graph: all of it recorded.
    """

    def __init__(self, gpu: CudaGpu, plan: Plan) -> None:
        self.gpu, self.plan = gpu, plan
        self.owner: object | None = None
        self.warm = False
        self.graph: Graph | None = None
        self._held: list[CudaMemory | HostBuffer] = []
        self.clock = Clock(gpu)
        self.uploaded = self.computed = self.done = None
        try:
            self.image, self.image_at = self._both((plan.image_rows, plan.width, 3), np.uint8)
            self.labels, self.labels_at = self._both((plan.label_rows, plan.width), np.uint8)
            self.confidence: HostBuffer | None = None
            self.confidence_at: int | None = None
            if plan.confidence:
                self.confidence, self.confidence_at = self._both((plan.label_rows, plan.width), np.float32)
            self.logits = self._keep(gpu.allocate(plan.logit_bytes)).address
            self.status_at = self._keep(gpu.allocate(STATUS_BYTES)).address
            self.status = self._keep(gpu.host_buffer((1,), np.int32))
            self.uploaded, self.computed, self.done = gpu.event(), gpu.event(), gpu.event()
        except BaseException:
            self.free()
            raise

    def upload(self, rows: int, stream: Any) -> None:
        """Start bringing the first `rows` of the image to the kernels."""
        if self.image.mapped is None:
            self.gpu.copy_in(self.image_at, self.image.array[:rows], stream)

    def download(self, rows: int, stream: Any) -> None:
        """Start bringing the status and the first `rows` of the result back; `done` happens when they are there."""
        for buffer, address in ((self.labels, self.labels_at), (self.confidence, self.confidence_at)):
            if buffer is not None and address is not None and buffer.mapped is None:
                self.gpu.copy_out(buffer.array[:rows], address, stream)
        self.gpu.copy_out(self.status.array, self.status_at, stream)
        self.gpu.mark(self.done, stream)

    def free(self) -> None:
        if self.graph is not None:
            self.graph.free()
            self.graph = None
        self.uploaded = self.computed = self.done = None
        self.clock.free()
        while self._held:
            self._held.pop().free()

    def _both(self, shape: tuple[int, ...], dtype: type) -> tuple[HostBuffer, int]:
        buffer = self._keep(self.gpu.host_buffer(shape, dtype))
        if buffer.mapped is not None:
            return buffer, buffer.mapped
        return buffer, self._keep(self.gpu.allocate(buffer.array.nbytes)).address

    def _keep(self, memory: _Held) -> _Held:
        self._held.append(memory)
        return memory


class Clock:
    """When the parts of a frame were done, by events on main."""

    def __init__(self, gpu: CudaGpu) -> None:
        self._gpu = gpu
        self._events: list[Any] = []
        self._names: list[str] = []

    def start(self) -> None:
        self._names.clear()
        self.mark("")

    def mark(self, name: str) -> None:
        """What was started since the last mark is of part `name` of `Timings`."""
        if len(self._names) == len(self._events):
            self._events.append(self._gpu.event())
        self._gpu.mark(self._events[len(self._names)], self._gpu.main)
        self._names.append(name)

    def add_to(self, timings: Timings) -> None:
        """Everything marked must have happened."""
        for index, name in enumerate(self._names[1:]):
            taken = self._gpu.seconds(self._events[index], self._events[index + 1])
            setattr(timings, name, getattr(timings, name) + taken)

    def free(self) -> None:
        self._names.clear()
        self._events.clear()
