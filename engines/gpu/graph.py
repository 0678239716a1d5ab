"""CUDA graphs: work that is recorded once and started by one call (CUDA 11.4 and later)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from engines.errors import DeployError, GpuLostError
from engines.gpu import driver
from engines.gpu.driver import DriverError
from engines.gpu.memory import OfGpu

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do cannot spoil the recording
_NEEDED = ("cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch",
           "cuGraphExecDestroy", "cuGraphDestroy")  # fmt: skip


class CaptureRefusedError(DeployError):
    """The work cannot be recorded.  It has not run, and may be run without a graph."""


class Graph(OfGpu):
    """A recorded piece of work.  Its memory must outlive it."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle

    def launch(self, stream: int) -> None:
        """Start everything that was recorded, in the order of `stream`.  Raises DriverError."""
        driver.call("cuGraphLaunch", self._handle, stream)

    def forget(self) -> None:
        """Its context is lost and released, and the graph with it: the handle must not be used again."""
        self._handle = 0

    def _free(self) -> None:
        handle, self._handle = self._handle, 0
        if handle:
            driver.library().cuGraphExecDestroy(handle)


def missing() -> str | None:
    """None where the driver can record graphs, otherwise which call it lacks."""
    lacking = [name for name in _NEEDED if not driver.has(name)]
    return f"the driver has no {lacking[0]}; graphs need CUDA 11.4 or later" if lacking else None


def record(stream: int, work: Callable[[], None], lost: Callable[[], bool]) -> Graph:
    """Record what `work` starts on `stream`; nothing of it runs.

    lost: whether `work` has lost and released the context.
    Raises CaptureRefusedError when the driver or the engine refuses, GpuLostError when the context is lost.  The stream
    is out of recording in every case, unless it is gone.
    """
    reason = missing()
    if reason:
        raise CaptureRefusedError(reason)
    try:
        driver.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
    except DriverError as error:
        raise CaptureRefusedError(str(error)) from error
    try:
        work()
    except GpuLostError:
        if not lost():  # otherwise the stream is gone with its context
            _discard(stream)
        raise
    except DeployError as error:
        _discard(stream)
        raise CaptureRefusedError(str(error)) from error
    except BaseException:
        _discard(stream)
        raise
    graph = ctypes.c_void_p()
    try:
        driver.call("cuStreamEndCapture", stream, ctypes.byref(graph))
    except DriverError as error:
        raise CaptureRefusedError(str(error)) from error
    try:
        executable = ctypes.c_void_p()
        driver.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
    except DriverError as error:
        raise CaptureRefusedError(str(error)) from error
    finally:
        driver.library().cuGraphDestroy(graph)
    return Graph(executable.value or 0)


def _discard(stream: int) -> None:
    """End a recording that failed: the status tells of that failure once more."""
    graph = ctypes.c_void_p()
    driver.library().cuStreamEndCapture(stream, ctypes.byref(graph))
    if graph.value:
        driver.library().cuGraphDestroy(graph)
