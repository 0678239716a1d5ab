"""The engine alone on a GPU, between memory of its own: what is timed so has no copies in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from types import TracebackType
from typing import Any, cast

import numpy as np

from engines.contract import DeviceSession, Float32
from engines.gpu.host_copies import DTYPES
from engines.tiling.device import Device, Gpu, Memory, UInt8


class EngineAlone:
    """Holds one batch of windows on the GPU.  Use in a `with` block.  Raises DeployError as Gpu and session do.

    windows: (N, 3, h, w) float32, the engine's input.
    """

    def __init__(self, gpu: Gpu, session: DeviceSession, windows: Float32) -> None:
        self._gpu, self._session = gpu, session
        self._held: list[Memory] = []
        output = session.output
        source = np.ascontiguousarray(windows, DTYPES[session.input.dtype])
        try:
            for size in (source.nbytes, prod(output.shape) * DTYPES[output.dtype].itemsize):
                self._held.append(gpu.allocate(size))
            gpu.upload(self._held[0].address, source)
        except BaseException:
            self.free()
            raise

    def __enter__(self) -> EngineAlone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def run(self) -> None:
        """Once, and wait for it."""
        source, target = self._held
        self._session.enqueue(source.address, target.address, self._gpu.stream)
        self._gpu.synchronize()

    def free(self) -> None:
        while self._held:
            self._held.pop().free()


def runs_alone(device: Device) -> bool:
    """Whether its engine can be run between memory of its GPU.  Otherwise a run copies its windows and logits."""
    return hasattr(device, "gpu") and hasattr(device.session, "enqueue")


def milliseconds_alone(device: Device, image: UInt8) -> float:
    """One run of the engine, on the first window of `image`; between the GPU's own memory where it `runs_alone`."""
    window, session = device.first_window(image), device.session
    if not runs_alone(device):
        return _milliseconds(lambda: session.run(window))
    gpu: Any = device.gpu  # type: ignore[attr-defined]  # not every device has one
    with EngineAlone(gpu, cast(DeviceSession, session), window) as alone:
        alone.run()  # what an engine sets up for new addresses is not timed
        return _milliseconds(alone.run)


def _milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)
