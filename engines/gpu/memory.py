"""What a GPU's context owns: memory and kernels.  Each is freed by `free`, at the latest by the GPU's `close`."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray


class CudaMemory:
    """Device memory, freed by `free`, with the last reference, or when the GPU is closed."""

    def __init__(self, allocation: Any, size: int) -> None:
        self._allocation, self.address, self.size = allocation, int(allocation), size

    def free(self) -> None:
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.free()


class HostBuffer:
    """Page-locked host memory, which the GPU copies from and to while the program goes on.

    array: the memory.  mapped: its address on a GPU that shares memory with the CPU and uses it in place, else None.
    """

    def __init__(self, array: NDArray[Any], mapped: int | None) -> None:
        self.array, self.mapped, self._allocation = array, mapped, array.base

    def free(self) -> None:
        """The array must not be touched afterwards."""
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


class Kernels:
    """The functions of a loaded cubin."""

    def __init__(self, module: Any) -> None:
        self._module, self._functions = module, dict[str, Any]()

    def function(self, name: str) -> Any:
        if name not in self._functions:
            self._functions[name] = self._module.get_function(name)
        return self._functions[name]

    def free(self) -> None:
        self._functions.clear()
        self._module = None
