"""What a GPU's context owns: memory, kernels, graphs.  Each is freed by `free`, at the latest by the GPU's `close`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class OfGpu(ABC):
    """Lives until it is freed in the thread of its GPU, whoever holds it: pycuda's contexts are a thread's own."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._others: set[OfGpu] = set()

    def held_in(self, others: set[OfGpu]) -> None:
        """others: what the GPU frees when it is closed."""
        self._others = others
        others.add(self)

    def free(self) -> None:
        """In another thread nothing happens: the GPU frees it when it is closed in its own."""
        if threading.get_ident() == self._thread:
            self._others.discard(self)
            self._free()

    @abstractmethod
    def _free(self) -> None: ...


class CudaMemory(OfGpu):
    """Device memory."""

    def __init__(self, allocation: Any, size: int) -> None:
        super().__init__()
        self._allocation, self.address, self.size = allocation, int(allocation), size

    def _free(self) -> None:
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.free()


class HostBuffer(OfGpu):
    """Page-locked host memory, which the GPU copies from and to while the program goes on.

    array: the memory, not to be touched once it was freed.  mapped: its address on a GPU that shares memory with the
    CPU and uses it in place, else None.
    """

    def __init__(self, array: NDArray[Any], mapped: int | None) -> None:
        super().__init__()
        self.array, self.mapped, self._allocation = array, mapped, array.base

    def _free(self) -> None:
        allocation: Any = self._allocation
        self._allocation = None
        if allocation is not None:
            self.array = np.empty(0, self.array.dtype)
            allocation.free()


class CudaEvent:
    """Something that happens on a stream, until the last reference is gone or the GPU is closed.

    spare: takes the driver's event then.  The last reference may be another thread's, where pycuda could not free it.
    """

    def __init__(self, event: Any, spare: deque[Any]) -> None:
        self.event, self._spare = event, spare

    def __del__(self) -> None:
        if self.event is not None:
            self._spare.append(self.event)

    def free(self) -> None:
        self.event = None


class CudaStream:
    """Work in an order, until the GPU is closed, whoever holds it: an error's traceback may for longer.

    handle: its cudaStream_t.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.handle = stream, int(stream.handle)

    def free(self) -> None:
        self.stream = None


class Kernels(OfGpu):
    """The functions of a loaded cubin."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module, self._functions = module, dict[str, Any]()

    def function(self, name: str) -> Any:
        if name not in self._functions:
            self._functions[name] = self._module.get_function(name)
        return self._functions[name]

    def _free(self) -> None:
        self._functions.clear()
        self._module = None
