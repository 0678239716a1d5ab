"""tile.cu on a machine without a GPU: compiled as C++, every thread after the other."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.gpu.kernels import Launch

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]


def build(target: Path, *flags: str) -> Path:
    command = ["g++", *FLAGS, *flags, "-shared", "-fPIC", str(HERE / "emulated.cpp"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


class Emulated:
    """A `benchmarks.kernel_cases.Machine`.  Memory is the process's, exactly as much as was asked for."""

    def __init__(self, library: Path) -> None:
        self._launch = ctypes.CDLL(str(library)).emulated_launch
        self._libc = ctypes.CDLL(None)
        self._libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

    def put(self, array: NDArray[np.generic]) -> int:
        address = ctypes.c_void_p()  # a few kB a test, until the process ends
        assert self._libc.posix_memalign(ctypes.byref(address), 256, array.nbytes) == 0
        assert address.value
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        return address.value

    def take(self, array: NDArray[np.generic], address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def launch(self, launch: Launch) -> None:
        argument = np.asarray(launch.argument)
        three = ctypes.c_uint * 3
        status = self._launch(
            launch.kernel.encode(),
            three(*launch.grid),
            three(*launch.block),
            ctypes.c_void_p(argument.ctypes.data),
            launch.shared,
        )
        assert status == 0, (launch.kernel, launch.grid, launch.block, status)
