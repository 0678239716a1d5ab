"""The CUDA driver by ctypes: the few calls that pycuda does not bind."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

from engines.errors import DeployError

LIBRARY = "libcuda.so.1"
NOT_READY = 600
_SUCCESS = 0
_CAPTURE = range(900, 910)  # what a stream that is being recorded answers: the context is well
_pointer, _status = ctypes.c_void_p, ctypes.c_int
_ARGUMENTS: dict[str, list[Any]] = {
    "cuInit": [ctypes.c_uint],
    "cuDeviceGetCount": [_pointer],
    "cuCtxGetCurrent": [_pointer],
    "cuCtxPopCurrent_v2": [_pointer],
    "cuStreamQuery": [_pointer],
    "cuGetErrorString": [_status, _pointer],
    "cuStreamBeginCapture_v2": [_pointer, ctypes.c_int],
    "cuStreamEndCapture": [_pointer, _pointer],
    "cuGraphInstantiateWithFlags": [_pointer, _pointer, ctypes.c_ulonglong],
    "cuGraphLaunch": [_pointer, _pointer],
    "cuGraphExecDestroy": [_pointer],
    "cuGraphDestroy": [_pointer],
}


class DriverError(Exception):
    """A call of the driver failed.  code: its CUresult."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} failed: {describe(code)}")
        self.code = code


@cache
def library() -> ctypes.CDLL:
    """The driver's library.  Raises DeployError where there is none."""
    try:
        lib = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DeployError(
            f"GPU: no NVIDIA driver here ({error}); install one, or give the container the GPU (docker run --gpus all)"
        ) from error
    for name, arguments in _ARGUMENTS.items():
        function = getattr(lib, name, None)  # an old driver may lack some
        if function is not None:
            function.argtypes, function.restype = arguments, _status
    return lib


def has(name: str) -> bool:
    """Whether this driver knows the call."""
    return hasattr(library(), name)


def call(name: str, *arguments: Any) -> None:
    """Raises DriverError when the driver refuses."""
    code = getattr(library(), name)(*arguments)
    if code != _SUCCESS:
        raise DriverError(name, code)


def describe(code: int) -> str:
    """What a CUresult means, in the driver's words."""
    text = ctypes.c_char_p()
    if library().cuGetErrorString(code, ctypes.byref(text)) != _SUCCESS or text.value is None:
        return f"error {code}"
    return f"{text.value.decode()} (error {code})"


def absent() -> str | None:
    """None where the driver sees a GPU, otherwise what is missing and what to do.  Makes no context."""
    try:
        count()
    except DeployError as error:
        return str(error)
    return None


def count() -> int:
    """GPUs that this process sees, 1 or more.  Raises DeployError.  Makes no context."""
    library()
    found, seen = ctypes.c_int(), os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        call("cuInit", 0)
        call("cuDeviceGetCount", ctypes.byref(found))
    except DriverError as error:
        if seen is not None:
            raise DeployError(f"GPU: {error}; CUDA_VISIBLE_DEVICES is {seen!r}: look at nvidia-smi -L") from error
        raise DeployError(
            f"GPU: {error}; look at nvidia-smi, and whether driver and kernel module are of one version"
        ) from error
    if found.value == 0:
        raise DeployError("GPU: the driver sees no GPU; look at CUDA_VISIBLE_DEVICES")
    return found.value


def current_context() -> int:
    """The CUcontext that is current in this thread, 0 for none."""
    context = _pointer()
    call("cuCtxGetCurrent", ctypes.byref(context))
    return context.value or 0


def pop_context() -> None:
    """Take the current context off this thread's stack."""
    call("cuCtxPopCurrent_v2", ctypes.byref(_pointer()))


def fault(stream: int) -> str | None:
    """What broke the context of `stream` for good, None while it is well.

    After a fault in a kernel every call of the driver answers with the same error until the process ends.
    """
    code = library().cuStreamQuery(stream)
    return None if code in (_SUCCESS, NOT_READY, *_CAPTURE) else describe(code)
