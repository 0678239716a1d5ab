"""The memory of frames on a GPU, and which of it the next one takes: that of the last image of its size, of a size gone
by, or new.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.gpu.context import CudaGpu, GpuMemoryError
from engines.gpu.graph import Graph
from engines.gpu.kernels import NOT_RUN
from engines.gpu.layout import Plan
from engines.machine.limits import available_memory, total_memory
from engines.tiling.device import Timings
from engines.tiling.placement import Tiling

IN_FLIGHT = 2  # frames under way at once: the copies of one run beside the kernels of the other
SIZES_KEPT = 4  # image sizes whose frames are kept, with what was recorded for them
IDLE_KEPT = 2  # blocks of memory of other sizes that are kept
SHARE = 0.8  # of the free memory, that the frames of whole images in flight may take
IN_FLIGHT_SHARE = 2  # frames in flight keep at most one such part of the host's free memory page-locked
HOST_SHARE = 4  # sizes that are idle keep at most one such part of the host's memory page-locked

Key = tuple[int, int, bool, bool]  # height, width, confidence, whole


def host_memory() -> int:
    """Bytes of memory that this process may have."""
    return total_memory() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def lockable_memory() -> int:
    """Bytes that the frames in flight may keep page-locked: nobody else can have them, not even by swapping."""
    available = available_memory()
    return (host_memory() if available is None else available) // IN_FLIGHT_SHARE


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
        self.clock = PartClock(gpu)
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
        """Start bringing the first `rows` of the image to the kernels.  Until they ran the status says so."""
        self.arrays["status"][:] = NOT_RUN
        if self.plan.regions["image"].device is not None:
            self.gpu.copy_in(self.addresses["image"], self.arrays["image"][:rows], stream)

    def download(self, rows: int, stream: Any) -> None:
        """Start bringing the first `rows` of the result, and the status, back; `done` happens when they are there."""
        for name in ("labels", "confidence", "status"):
            region = self.plan.regions.get(name)
            if region is not None and region.device is not None:
                self.gpu.copy_out(self.arrays[name][:rows], self.addresses[name], stream)
        self.gpu.mark(self.done, stream)

    def result(self, rows: int) -> tuple[UInt8, NDArray[np.float32] | None]:
        """Copies of the first `rows` of labels and confidence, once `done` has happened."""
        labels, certainty = self.arrays["labels"][:rows].copy(), self.arrays.get("confidence")
        return labels, None if certainty is None else certainty[:rows].copy()

    def free(self) -> None:
        """Everything but the blocks."""
        if self.graph is not None:
            self.graph.free()
            self.graph = None
        self.arrays.clear()
        self.addresses.clear()
        self.uploaded = self.computed = self.done = None
        self.clock.free()


class PartClock:
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


class Pool:
    """Hands out slots.  batch: windows per run of the engine.  window_bytes: the logits of one window.

    channels: of the images.
    """

    def __init__(self, gpu: CudaGpu, tiling: Tiling, batch: int, window_bytes: int, channels: int = 3) -> None:
        self._gpu, self._tiling, self._batch, self._window_bytes = gpu, tiling, batch, window_bytes
        self._channels = channels
        self.slots: dict[Key, list[Slot]] = {}  # last used last
        self._busy: list[Slot] = []  # oldest first
        self._idle: list[Blocks] = []  # of sizes that were dropped, oldest first

    def take(self, height: int, width: int, confidence: bool, whole: bool) -> Slot:
        """A free slot.  The caller names its owner.  Raises GpuMemoryError when not even strips of the image fit.

        Where more than `IN_FLIGHT` are wanted, the one that was handed out first is taken from its owner.
        """
        self._busy = [slot for slot in self._busy if slot.owner is not None]
        if len(self._busy) >= IN_FLIGHT:  # whoever asked for it has given it up
            self._gpu.synchronize()
            self._busy.pop(0).owner = None
        key = (height, width, confidence, whole)
        slots = self.slots.pop(key, [])
        self.slots[key] = slots
        slot = next((slot for slot in slots if slot.owner is None), None)
        if slot is None:
            for old in list(self.slots)[:-SIZES_KEPT]:
                self._drop(old)
            slot = self._new(key)
            slots.append(slot)
            self._trim()
        self._busy.append(slot)
        return slot

    def close(self) -> None:
        """Free everything."""
        for slots in self.slots.values():
            for slot in slots:
                slot.free()
                slot.blocks.free()
        self.slots.clear()
        while self._idle:
            self._idle.pop().free()

    def _new(self, key: Key) -> Slot:
        """For the whole image where it fits, otherwise for strips of it; for either, other sizes make room."""
        height, width, confidence, whole = key
        first = not self.slots[key]
        whole = whole and (first or self.slots[key][0].plan.whole)  # all of a size in one way, not now this, now that
        for kind in (True, False) if whole else (False,):
            plan = Plan.of(
                self._tiling, size=(height, width), confidence=confidence, whole=kind, batch=self._batch,
                window_bytes=self._window_bytes, channels=self._channels,
                shared=self._gpu.info.integrated,
            )  # fmt: skip
            blocks = self._reused(plan) or self._allocated(plan, first)
            if blocks is None:
                self._make_room()
                blocks = self._allocated(plan, first)
            if blocks is not None:
                return self._slot(plan, blocks)
        return self._slot(plan, Blocks(self._gpu, plan))  # which says what is missing

    def _reused(self, plan: Plan) -> Blocks | None:
        fitting = [blocks for blocks in self._idle if blocks.holds(plan) and blocks.bytes <= 4 * plan.bytes]
        if not fitting:
            return None
        blocks = min(fitting, key=lambda blocks: blocks.bytes)
        self._idle.remove(blocks)
        return blocks

    def _allocated(self, plan: Plan, first: bool) -> Blocks | None:
        """None where there is no room, or the whole images in flight would take too much of it, here or on the host.

        first: of its size; the others were counted with it.
        """
        wanted = IN_FLIGHT * (plan.bytes if self._gpu.info.integrated else plan.device)
        if plan.whole and first and wanted > SHARE * self._gpu.free_memory():
            return None
        if plan.whole and first and IN_FLIGHT * plan.host > lockable_memory():
            return None
        try:
            return Blocks(self._gpu, plan)
        except GpuMemoryError:
            return None

    def _slot(self, plan: Plan, blocks: Blocks) -> Slot:
        try:
            return Slot(self._gpu, plan, blocks)
        except BaseException:
            blocks.free()
            raise

    def _make_room(self) -> None:
        """Free what no frame uses now."""
        for key in list(self.slots):
            self._drop(key)
        while self._idle:
            self._idle.pop().free()

    def _trim(self) -> None:
        """Free what idle sizes keep beyond their share of the host's memory, the oldest first."""
        limit = host_memory() // HOST_SHARE
        for key in [None, *list(self.slots)[:-1]]:
            if key is not None and self._kept() > limit:
                self._drop(key)
            while self._idle and self._kept() > limit:
                self._idle.pop(0).free()

    def _kept(self) -> int:
        """Bytes of page-locked memory of all sizes but the last used."""
        slots = [slot for key in list(self.slots)[:-1] for slot in self.slots[key] if slot.owner is None]
        return sum(blocks.host.array.nbytes for blocks in (*self._idle, *(slot.blocks for slot in slots)))

    def _drop(self, key: Key) -> None:
        """Forget an image size, except frames at work, and keep its memory for sizes to come."""
        slots = self.slots[key]
        for slot in [slot for slot in slots if slot.owner is None]:
            slots.remove(slot)
            slot.free()
            self._idle.append(slot.blocks)
        if not slots and key != next(reversed(self.slots)):  # the last one is being filled
            del self.slots[key]
        while len(self._idle) > IDLE_KEPT:
            self._idle.pop(0).free()


def _rounded(size: int) -> int:
    """A little more, so that images of nearly one size can use each other's blocks."""
    step = 1 << max(size.bit_length() - 4, 8)
    return -(-size // step) * step
