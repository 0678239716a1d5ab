"""How much energy a piece of work takes, and who says so: the board's own monitors, the driver, or the processor.

A Jetson is measured at its input rail (the module as a whole); an engine on another GPU by NVML (the card as a whole);
everything else by RAPL (processor packages alone).  Where nothing can be read there is no number, but a reason.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from engines.machine import nvml
from engines.machine.jetson import read_jetson
from engines.machine.nvml import Nvml, NvmlError
from engines.machine.sysfs import ROOT
from engines.measure.rails import find_rails
from engines.measure.rapl import find_rapl

SAMPLE_S = 0.05  # of power; a reading of a Jetson's rails is some milliseconds of I2C
COUNTER_S = 10.0  # counters are read between start and end only so that none starts again unseen


@dataclass(frozen=True)
class Meter:
    """source: what is measured and by what.  read: mW now, or with `counter` joules so far; None when it fails."""

    source: str
    read: Callable[[], float | None]
    counter: bool = False


@dataclass(frozen=True)
class NoMeter:
    reason: str


@dataclass
class Energy:
    """joules: None where it could not be measured; `reason` then says why.

    seconds: of the block.  samples: readings of the meter.
    """

    joules: float | None = None
    seconds: float = 0.0
    source: str = ""
    samples: int = 0
    reason: str = ""

    @property
    def watts(self) -> float | None:
        """Mean power over the block."""
        return None if self.joules is None or not self.seconds else self.joules / self.seconds

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "watts": self.watts}


def find_meter(gpu: bool, root: Path = ROOT, library: str = nvml.LIBRARY) -> Meter | NoMeter:
    """gpu: the work runs on a GPU.  library: NVML's."""
    if read_jetson(root) is not None:
        rails, reason = find_rails(root)
        return NoMeter(f"Jetson: {reason}") if rails is None else Meter(rails.source, rails.milliwatts)
    if gpu:
        return _gpu_meter(library)
    counters, reason = find_rapl(root)
    return NoMeter(reason) if counters is None else Meter(counters.source, counters.joules, counter=True)


def _gpu_meter(library: str) -> Meter | NoMeter:
    try:
        gpu = Nvml(library)
    except NvmlError as error:
        return NoMeter(str(error))
    if gpu.millijoules() is not None:
        return Meter(f"NVML energy counter, {gpu.name}", lambda: _thousandth(gpu.millijoules()), counter=True)
    if gpu.milliwatts() is not None:
        return Meter(f"NVML power, {gpu.name}", gpu.milliwatts)
    return NoMeter(f"NVML: {gpu.name} tells neither power nor energy")


@contextmanager
def measured(meter: Meter | NoMeter) -> Iterator[Energy]:
    """Measure the energy of the block.  The Energy is filled in when the block ends."""
    energy = Energy()
    if isinstance(meter, NoMeter):
        begin = time.perf_counter()
        yield energy
        energy.seconds, energy.reason = time.perf_counter() - begin, meter.reason
        return
    sampler = _Sampler(meter)
    try:
        yield energy
    finally:
        readings = sampler.stop()
    energy.source, energy.samples = meter.source, len(readings)
    energy.seconds = readings[-1][0] - readings[0][0]
    values = [value for _, value in readings if value is not None]
    if len(values) < len(readings):
        energy.reason = f"{meter.source}: {len(readings) - len(values)} of {len(readings)} readings failed"
        return
    total = values[-1] - values[0] if meter.counter else _integral(readings) / 1e3
    if meter.counter and total <= 0:
        energy.reason = f"{meter.source}: it did not move in {energy.seconds:.3f} s; measure for longer"
        return
    energy.joules = total


class _Sampler:
    """Reads a meter at the start, at the end, and now and then between, in a thread of its own."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._readings: list[tuple[float, float | None]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._take()
        self._thread.start()

    def stop(self) -> list[tuple[float, float | None]]:
        """(seconds, reading) from the first to one taken now."""
        self._ended.set()
        self._thread.join()
        self._take()
        return self._readings

    def _run(self) -> None:
        while not self._ended.wait(COUNTER_S if self._meter.counter else SAMPLE_S):
            self._take()

    def _take(self) -> None:
        value = self._meter.read()
        self._readings.append((time.perf_counter(), value))


def _integral(readings: list[tuple[float, float | None]]) -> float:
    """Of milliwatts over seconds, by trapezoids."""
    return math.fsum(
        (after - before) * ((first or 0) + (second or 0)) / 2 for (before, first), (after, second) in pairwise(readings)
    )


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1e3
