"""The memory of frames on a GPU: that of an image gone by, or new."""

from __future__ import annotations

import os
import weakref
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.gpu.context import CudaGpu, GpuMemoryError
from engines.gpu.kernels import NOT_RUN
from engines.gpu.layout import STRIPS, MemoryLayout
from engines.machine.limits import available_memory, total_memory

IN_FLIGHT = 2  # frames under way at once, at least: the copies of one run beside the kernels of the other
SHARE = 0.8  # of the free memory, that the frames of whole images in flight may take
IN_FLIGHT_SHARE = 2  # frames in flight keep at most one such part of the host's free memory page-locked
HOST_SHARE = 4  # idle memory keeps at most one such part of the host's page-locked


L = TypeVar("L", bound=MemoryLayout)


def host_memory() -> int:
    """Bytes of memory that this process may have."""
    return total_memory() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Blocks:
    """A block of device memory and one of page-locked host memory, for one image after another.

    uploaded, computed, done: what has happened of each strip, or of the whole image.
    """

    def __init__(self, gpu: CudaGpu, plan: MemoryLayout) -> None:
        self.device = gpu.allocate(_rounded(plan.device))
        try:
            self.host = gpu.host_buffer((_rounded(plan.host),), np.uint8)
        except BaseException:
            self.device.free()
            raise
        self.uploaded, self.computed, self.done = ([gpu.event() for _ in range(STRIPS)] for _ in range(3))

    @property
    def bytes(self) -> int:
        return self.device.size + self.host.array.nbytes

    def holds(self, plan: MemoryLayout) -> bool:
        return plan.device <= self.device.size and plan.host <= self.host.array.nbytes

    def free(self) -> None:
        for events in (self.uploaded, self.computed, self.done):
            events.clear()
        self.host.free()
        self.device.free()


class Slot(Generic[L]):
    """Memory in the use of one image.

    arrays: on the host, by region.  addresses: where the kernels find each, which is the same memory where the GPU
    shares it with the CPU.  strip: 0, or which of the strips.
    """

    def __init__(self, gpu: CudaGpu, plan: L, blocks: Blocks, owner: object) -> None:
        self.gpu, self.plan, self.blocks = gpu, plan, blocks
        self.owner, self.idle = weakref.ref(owner), False
        self.uploaded, self.computed, self.done = blocks.uploaded, blocks.computed, blocks.done
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

    def address(self, name: str, strip: int) -> int:
        region = self.plan.regions[name]
        return self.addresses[name] + strip * (region.bytes // region.shape[0])

    def upload(self, strip: int, rows: int) -> None:
        """Start bringing the first `rows` of a strip of the image to the kernels, which wait for it: `uploaded`.

        Until they ran the status says so.
        """
        self.arrays["status"][strip] = NOT_RUN
        self.gpu.clear(self.address("status", strip), 8, self.gpu.up)
        if self.plan.regions["image"].device is not None:
            self.gpu.copy_in(self.address("image", strip), self.arrays["image"][strip, :rows], self.gpu.up)
        self.gpu.mark(self.uploaded[strip], self.gpu.up)
        self.gpu.follow(self.gpu.main, self.uploaded[strip])

    def download(self, strip: int, rows: int) -> None:
        """Start bringing the first `rows` of the result, and the status, back; `done` happens when they are there."""
        self.gpu.mark(self.computed[strip], self.gpu.main)
        self.gpu.follow(self.gpu.down, self.computed[strip])
        for name in ("labels", "confidence", "status"):
            region = self.plan.regions.get(name)
            if region is not None and region.device is not None:
                array = self.arrays[name][strip]
                self.gpu.copy_out(array if name == "status" else array[:rows], self.address(name, strip), self.gpu.down)
        self.gpu.mark(self.done[strip], self.gpu.down)

    def result(self, strip: int, rows: int) -> tuple[UInt8, NDArray[Any] | None]:
        """Copies of the first `rows` of labels and confidence, once `done` has happened."""
        labels, certainty = self.arrays["labels"][strip, :rows].copy(), self.arrays.get("confidence")
        return labels, None if certainty is None else certainty[strip, :rows].copy()

    def release(self) -> None:
        """Nothing that was started uses it any more."""
        self.idle = True
        self.arrays.clear()
        self.addresses.clear()


class Pool:
    """Hands out slots, and takes back the memory of those that are idle or whose frame is gone."""

    def __init__(self, gpu: CudaGpu) -> None:
        self._gpu = gpu
        self.busy: list[Slot[Any]] = []
        self.idle: list[Blocks] = []  # oldest first

    def most(self, plan: MemoryLayout, more: int = 0) -> int:
        """How many such frames may be under way at once.  more: bytes of the GPU, as if they were free, too."""
        self._reclaim()
        shared = self._gpu.info.integrated
        device = sum(blocks.bytes if shared else blocks.device.size for blocks in self._blocks())
        device += self._gpu.free_memory() + more
        available = available_memory()
        host = (host_memory() if available is None else available) + self._locked(self._blocks())
        wanted = plan.bytes if shared else plan.device
        return int(min(SHARE * device // wanted, host // IN_FLIGHT_SHARE // plan.host))

    def take(self, plan: L, owner: object) -> Slot[L]:
        """Free, until `owner` releases it or is gone.  Raises GpuMemoryError when there is no memory for it."""
        self._reclaim()
        blocks = self._reused(plan) or self._allocated(plan)
        self._trim()
        slot = Slot(self._gpu, plan, blocks, owner)
        self.busy.append(slot)
        return slot

    def untouched(self, slot: Slot[Any]) -> bool:
        """Whether what a slot held is still there, once it was released."""
        return slot.idle and slot in self.busy

    def close(self) -> None:
        """Free everything."""
        for blocks in self._blocks():
            blocks.free()
        self.busy.clear()
        self.idle.clear()

    def _blocks(self) -> list[Blocks]:
        return [*self.idle, *(slot.blocks for slot in self.busy)]

    def _locked(self, blocks: list[Blocks]) -> int:
        return sum(each.host.array.nbytes for each in blocks)

    def _reclaim(self) -> None:
        """Also from frames that were given up: what they started must be done."""
        if any(slot.owner() is None and not slot.idle for slot in self.busy):
            self._gpu.synchronize()
        free = [slot for slot in self.busy if slot.idle or slot.owner() is None]
        self.busy = [slot for slot in self.busy if slot not in free]
        self.idle += [slot.blocks for slot in free]

    def _reused(self, plan: MemoryLayout) -> Blocks | None:
        fitting = [blocks for blocks in self.idle if blocks.holds(plan) and blocks.bytes <= 4 * plan.bytes]
        if not fitting:
            return None
        blocks = min(fitting, key=lambda blocks: blocks.bytes)
        self.idle.remove(blocks)
        return blocks

    def _allocated(self, plan: MemoryLayout) -> Blocks:
        """New; what is idle makes room, the oldest first."""
        while True:
            try:
                return Blocks(self._gpu, plan)
            except GpuMemoryError:
                if not self.idle:
                    raise
                self.idle.pop(0).free()

    def _trim(self) -> None:
        """Free idle memory, the oldest first: beyond its share of the host's, and more blocks than are in use."""
        limit = host_memory() // HOST_SHARE
        while self.idle and (self._locked(self.idle) > limit or len(self.idle) > max(IN_FLIGHT, len(self.busy))):
            self.idle.pop(0).free()


def _rounded(size: int) -> int:
    """A little more, so that images of nearly one size can use each other's blocks."""
    step = 1 << max(size.bit_length() - 4, 8)
    return -(-size // step) * step
