"""The memory of one frame on a GPU, and when its parts were done."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.gpu.context import CudaGpu
from engines.gpu.graph import Graph
from engines.gpu.layout import Plan
from engines.tiling.device import Timings


class Blocks:
    """A block of device memory and one of page-locked host memory, for one slot after another."""

    def __init__(self, gpu: CudaGpu, plan: Plan) -> None:
        self.device = gpu.allocate(_rounded(plan.device))
        try:
            self.host = gpu.host_buffer((_rounded(plan.host),), np.uint8)
        except BaseException:
            self.device.free()
            raise

    @property
    def bytes(self) -> int:
        return self.device.size + self.host.array.nbytes

    def holds(self, plan: Plan) -> bool:
        return plan.device <= self.device.size and plan.host <= self.host.array.nbytes

    def free(self) -> None:
        self.host.free()
        self.device.free()


class Slot:
    """Used by one image after another of one size.

    image, labels, confidence, status: on the host.  addresses: where the kernels find each of the plan's regions,
    which is the same memory where the GPU shares it with the CPU.
    owner: the frame that uses it, or None.  warm: whether everything has run once.  graph: all of it recorded.
    """

    def __init__(self, gpu: CudaGpu, plan: Plan, blocks: Blocks) -> None:
        self.gpu, self.plan, self.blocks = gpu, plan, blocks
        self.owner: object | None = None
        self.warm = False
        self.graph: Graph | None = None
        self.clock = Clock(gpu)
        self.arrays: dict[str, NDArray[Any]] = {}
        self.addresses: dict[str, int] = {}
        for name, region in plan.regions.items():
            if region.host is not None:
                raw = blocks.host.array[region.host : region.host + region.bytes]
                self.arrays[name] = raw.view(region.dtype).reshape(region.shape)
            if region.device is not None:
                self.addresses[name] = blocks.device.address + region.device
            elif blocks.host.mapped is not None and region.host is not None:
                self.addresses[name] = blocks.host.mapped + region.host
        self.uploaded, self.computed, self.done = gpu.event(), gpu.event(), gpu.event()

    def upload(self, rows: int, stream: Any) -> None:
        """Start bringing the first `rows` of the image to the kernels."""
        if self.plan.regions["image"].device is not None:
            self.gpu.copy_in(self.addresses["image"], self.arrays["image"][:rows], stream)

    def download(self, rows: int, stream: Any) -> None:
        """Start bringing the first `rows` of the result, and the status, back; `done` happens when they are there."""
        for name in ("labels", "confidence", "status"):
            region = self.plan.regions.get(name)
            if region is not None and region.device is not None:
                self.gpu.copy_out(self.arrays[name][:rows], self.addresses[name], stream)
        self.gpu.mark(self.done, stream)

    def result(self, rows: int) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """Copies of the first `rows` of labels and confidence, once `done` has happened."""
        labels, certainty = self.arrays["labels"][:rows].copy(), self.arrays.get("confidence")
        return labels, None if certainty is None else certainty[:rows].copy()

    def free(self) -> None:
        """Everything but the blocks."""
        if self.graph is not None:
            self.graph.free()
            self.graph = None
        self.arrays.clear()
        self.uploaded = self.computed = self.done = None
        self.clock.free()


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


def _rounded(size: int) -> int:
    """A little more, so that images of nearly one size can use each other's blocks."""
    step = 1 << max(size.bit_length() - 4, 8)
    return -(-size // step) * step
