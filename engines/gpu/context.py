"""The GPU through pycuda: the primary context, its streams, memory and kernels.  found.py imports it.

The primary context is the one that TensorRT and torch use too.  It is retained, never made: pycuda's autoinit would
make a second one, in which their addresses mean nothing.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.errors import DeployError, GpuLostError
from engines.gpu import driver, graph
from engines.gpu.driver import DriverError
from engines.gpu.found import describe, gpu_info, pycuda, unavailable
from engines.gpu.kernels import Launch
from engines.gpu.memory import CudaEvent, CudaMemory, CudaStream, HostBuffer, Kernels, OfGpu
from engines.gpu.thread import OfThread
from engines.machine.limits import available_memory

__all__ = ["CudaGpu", "GpuMemoryError", "gpu_info", "open_gpu", "unavailable"]

_OWN = 3  # streams: main, up, down
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for what others start on the default stream


class GpuMemoryError(DeployError):
    """The GPU has no memory left for this."""


_opened = OfThread()
_lost: list[str] = []  # what broke the primary context of this process, at most one


@contextmanager
def open_gpu() -> Iterator[CudaGpu]:
    """The first GPU, with its primary context current in this thread.  Opened again inside, it is the same object.

    Closed in another thread, or never, it is closed when the thread ends that opened it.
    Raises DeployError without a driver, a GPU or pycuda; GpuLostError where an earlier fault broke the context.
    """
    use = _opened.use
    if use.gpu is None:
        if _lost:
            raise GpuLostError(_lost[0])
        use.gpu = CudaGpu(pycuda())
    use.users += 1
    try:
        yield use.gpu
    finally:  # in whatever thread
        use.users -= 1
        if not use.users:
            use.close()


class CudaGpu:
    """The primary context in the thread that opened it.  Every call raises DeployError, GpuLostError once it is lost.

    main: kernels, the engine, and their graphs.  up, down: copies, beside what runs on main.  Others: see `beside`.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.info = describe(cuda)
        self.lost: str | None = None
        self._thread = threading.get_ident()
        self._owned: set[OfGpu] = set()
        self._events: weakref.WeakSet[CudaEvent] = weakref.WeakSet()
        self._spare: dict[bool, deque[Any]] = {timed: deque() for timed in (False, True)}  # events
        try:
            self._context = cuda.Device(0).retain_primary_context()
            self._context.push()
        except cuda.Error as error:
            raise DeployError(
                f"GPU {self.info.name}: no context: {error}; close other programs that use it, and look at nvidia-smi"
            ) from error
        self._handle = driver.current_context()
        try:
            self.main, self.up, self.down = (CudaStream(cuda.Stream(_NON_BLOCKING)) for _ in range(_OWN))
        except cuda.Error as error:
            self._leave()
            raise DeployError(f"GPU {self.info.name}: no stream: {error}; close other programs that use it") from error
        self._streams = [self.up, self.main, self.down]
        self._probe = self.down.handle  # never recorded, so that it may be asked at any time

    @property
    def stream(self) -> int:
        """cudaStream_t of main."""
        return self.main.handle

    def beside(self, number: int) -> CudaStream:
        """One more stream, by its number from 0 on; it stays until the GPU is closed."""
        with self._errors("making a stream"):
            while len(self._streams) <= _OWN + number:
                self._streams.append(CudaStream(self._cuda.Stream(_NON_BLOCKING)))
        return self._streams[_OWN + number]

    def stream_of(self, handle: int) -> CudaStream:
        """The one of its streams that has this cudaStream_t."""
        return next(stream for stream in self._streams if stream.handle == handle)

    def allocate(self, size: int) -> CudaMemory:
        """`size` bytes, aligned to 256."""
        with self._errors(f"allocating {_mib(size)}", f"{_mib(size)} of GPU memory"):
            memory = CudaMemory(self._cuda.mem_alloc(max(size, 1)), size)
        memory.held_in(self._owned)
        return memory

    def host_buffer(self, shape: Sequence[int], dtype: DTypeLike) -> HostBuffer:
        """Page-locked memory of this shape, all 1 or more; mapped where the GPU has no memory of its own."""
        flags = self._cuda.host_alloc_flags.DEVICEMAP if self.info.integrated else 0
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self._errors(f"locking {_mib(size)} of host memory", f"{_mib(size)} of page-locked host memory"):
            array = self._cuda.pagelocked_empty(tuple(shape), np.dtype(dtype), mem_flags=flags)
            mapped = int(array.base.get_device_pointer()) if self.info.integrated else None
        buffer = HostBuffer(array, mapped)
        buffer.held_in(self._owned)
        return buffer

    def free_memory(self) -> int:
        """Bytes that could be allocated now.

        Where the CPU has the same memory the driver counts as used what the kernel would give up (caches of files, most
        of a board's memory), and Linux knows better; what a container may use is less again.
        """
        with self._errors("asking for free memory"):
            return self._free()

    def upload(self, address: int, array: NDArray[np.generic]) -> None:
        """Copy a C-contiguous array to `address`; it may be changed when this returns."""
        with self._errors("copying to the GPU"):
            self._cuda.memcpy_htod_async(address, array, self.main.stream)
            self._wait(self.main)

    def download(self, array: NDArray[np.generic], address: int) -> None:
        """Fill a C-contiguous array from `address`, and wait for it."""
        with self._errors("copying from the GPU"):
            self._cuda.memcpy_dtoh_async(array, address, self.main.stream)
            self._wait(self.main)

    def synchronize(self) -> None:
        with self._errors("waiting for the GPU"):
            for stream in self._streams:
                self._wait(stream)

    def copy_in(self, address: int, array: NDArray[Any], stream: CudaStream) -> None:
        """Start copying a C-contiguous array of a host buffer."""
        with self._errors("copying to the GPU"):
            self._cuda.memcpy_htod_async(address, array, stream.stream)

    def copy_out(self, array: NDArray[Any], address: int, stream: CudaStream) -> None:
        """Start copying into a C-contiguous array of a host buffer."""
        with self._errors("copying from the GPU"):
            self._cuda.memcpy_dtoh_async(array, address, stream.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Start copying within the GPU, on main."""
        with self._errors("copying on the GPU"):
            self._cuda.memcpy_dtod_async(target, source, size, self.main.stream)

    def clear(self, address: int, size: int, stream: CudaStream | None = None) -> None:
        """Start setting bytes to zero, on main or another stream."""
        with self._errors("clearing memory"):
            self._cuda.memset_d8_async(address, 0, size, (stream or self.main).stream)

    def load(self, cubin: bytes) -> Kernels:
        """Raises DeployError when the driver refuses the kernels."""
        try:
            with self._errors("loading the kernels"):
                kernels = Kernels(self._cuda.module_from_buffer(cubin))
        except (GpuLostError, GpuMemoryError):
            raise
        except DeployError as error:
            if isinstance(error.__cause__, self._cuda.Error) and "image is invalid" in str(error):
                newest = ".".join(map(str, self.info.cuda))
                raise DeployError(
                    f"{error}; the driver here runs CUDA {newest}, and they may be newer: update the driver, or "
                    f"build the bundle again with a toolkit of CUDA {newest}"
                ) from error
            raise DeployError(f"{error}; they were compiled for another GPU: build the bundle again here") from error
        kernels.held_in(self._owned)
        return kernels

    def has(self, kernels: Kernels, name: str) -> bool:
        """Whether there is a kernel of this name."""
        try:
            with self._errors(f"looking for kernel {name}"):
                kernels.function(name)
        except GpuLostError:
            raise
        except DeployError:
            return False
        return True

    def launch(self, kernels: Kernels, launch: Launch, stream: CudaStream | None = None) -> None:
        """Start a kernel, on main or another stream."""
        with self._errors(f"starting kernel {launch.kernel}"):
            function = kernels.function(launch.kernel)
            function(
                launch.argument, grid=launch.grid, block=launch.block, stream=(stream or self.main).stream,
                shared=launch.shared,
            )  # fmt: skip

    def event(self, timed: bool = False) -> CudaEvent:
        """To be marked, followed and waited for, and if it is `timed` read by `seconds`."""
        flags = self._cuda.event_flags
        spare = self._spare[timed]
        with self._errors("making an event"):
            made = spare.popleft() if spare else None
            made = made or self._cuda.Event(flags.BLOCKING_SYNC | (0 if timed else flags.DISABLE_TIMING))
        event = CudaEvent(made, spare)
        self._events.add(event)
        return event

    def mark(self, event: CudaEvent, stream: CudaStream) -> None:
        """`event` happens when what was started on `stream` so far is done."""
        with self._errors("recording an event"):
            event.event.record(stream.stream)

    def follow(self, stream: CudaStream, event: CudaEvent) -> None:
        """What is started on `stream` from now on waits for `event`; the caller does not."""
        with self._errors("waiting for an event"):
            stream.stream.wait_for_event(event.event)

    def finish(self, event: CudaEvent) -> None:
        """Wait for `event`, asleep: a core that spins would be missing to who decodes the next image."""
        with self._errors("waiting for the GPU"):
            event.event.synchronize()

    def seconds(self, start: CudaEvent, end: CudaEvent) -> float:
        """Between two events that have happened."""
        with self._errors("reading an event"):
            return float(end.event.time_since(start.event)) * 1e-3

    def record(self, work: Callable[[], None]) -> graph.Graph:
        """Record what `work` starts on main.  Raises graph.CaptureRefusedError."""
        with self._errors("recording a graph"):
            recorded = graph.record(self.stream, work, lambda: self.lost is not None)
        recorded.held_in(self._owned)
        return recorded

    def replay(self, recorded: graph.Graph, stream: CudaStream | None = None) -> None:
        """Start a recorded graph, on main or another stream."""
        with self._errors("starting a graph"):
            recorded.launch((stream or self.main).handle)

    def close(self) -> None:
        """Free everything.  Never raises after the GPU was lost."""
        if self.lost is None:
            for thing in list(self._owned):
                thing.free()
            for event in list(self._events):
                event.free()
            for spare in self._spare.values():
                spare.clear()
            for stream in self._streams:
                stream.free()
            self._leave()

    @contextmanager
    def _errors(self, doing: str, wanted: str = "") -> Iterator[None]:
        """Turns pycuda's errors into ours."""
        if self.lost is not None:
            raise GpuLostError(self.lost)
        if self.main.stream is None or threading.get_ident() != self._thread:
            how = "closed" if self.main.stream is None else "opened in another thread"
            raise DeployError(f"GPU {self.info.name}: {doing}: it was {how}; use it inside `with open_gpu()`")
        try:
            yield
        except (self._cuda.Error, DriverError) as error:
            fault = driver.fault(self._probe)
            if fault is not None:
                self._abandon(f"GPU {self.info.name}: lost while {doing}: {fault}; start the program again")
                raise GpuLostError(str(self.lost)) from error
            if isinstance(error, self._cuda.MemoryError):
                free = _mib(self._free())
                raise GpuMemoryError(
                    f"GPU {self.info.name}: no memory left: wanted {wanted or f'some for {doing}'}, {free} are free; "
                    "take a smaller --tile or --batch, or close other programs that use it"
                ) from error
            raise DeployError(f"GPU {self.info.name}: {doing}: {error}") from error

    def _wait(self, stream: CudaStream) -> None:
        event = self.event()
        event.event.record(stream.stream)
        event.event.synchronize()

    def _free(self) -> int:
        free, total = map(int, self._cuda.mem_get_info())
        available = available_memory() if self.info.integrated else None
        return free if available is None else min(available, total)

    def _abandon(self, reason: str) -> None:
        """Leave a broken context.  What pycuda holds of it is then let go in silence, instead of failing one by one."""
        self.lost = reason
        _lost[:] = [reason]
        for thing in list(self._owned):
            if isinstance(thing, graph.Graph):
                thing.forget()
        self._owned.clear()
        self._leave()

    def _leave(self) -> None:
        """Release the context.  pycuda forgets it but leaves it current, which the driver must be told."""
        self._context.detach()
        with suppress(DriverError):  # a lost context answers everything with its fault
            if driver.current_context() == self._handle:
                driver.pop_context()


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
