"""What a bundle's windows take here: seconds of work, in a process of its own, once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from engines.bundle import Manifest
from engines.contract import UInt8
from engines.machine.limits import cores
from engines.machine.sysfs import cpu_name
from engines.measure.worker import FrameTimes, Worker
from engines.plan.predict import Costs, covered, held_bytes
from engines.tiling.placement import Tiling

ROUNDS, SECONDS = 5, 3.0  # timed frames: at most so many, and no further one after so long; three at least


def machine_of(manifest: Manifest, threads: int) -> str:
    """What costs depend on beside the bundle."""
    return f"{cpu_name()}, {threads or cores()} thread(s), {manifest.sdk} on {manifest.device}"


def measure_costs(folder: Path, manifest: Manifest, threads: int = 0, host_code: bool = False) -> Costs:
    """Time two overlapping windows, side by side.  Raises DeployError as opening the bundle does."""
    with Worker(folder, threads, host_code) as worker:
        on_host = worker.device().name == "host"
        worker.put(sample(manifest.tiling))
        worker.frame()  # which makes everything that is made on first use
        frames = _frames(worker)
        peak = worker.peak_bytes()
        worker.time_parts(not on_host)
        parts = frames if on_host else _frames(worker)
    return costs_of(manifest, machine_of(manifest, threads), peak, frames, parts)


def sample(tiling: Tiling) -> UInt8:
    """Noise of two windows that overlap by half."""
    height, width = tiling.labelled
    size = (height, width + max(1, width // 2))
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def costs_of(
    manifest: Manifest, machine: str, peak: int, frames: Sequence[FrameTimes], parts: Sequence[FrameTimes]
) -> Costs:
    """frames: of the `sample`.  parts: frames of it whose parts were timed, the same on the host."""
    gather, engine, stitch = (
        statistics.median(getattr(each, f"{part}_ms") for each in parts) for part in ("gather", "engine", "stitch")
    )
    tiling, size = manifest.tiling, sample(manifest.tiling).shape[:2]
    tops, lefts = tiling.placements(*size)
    runs = -(-len(tops) * len(lefts) // manifest.batch)
    whole = statistics.median(each.frame_ms for each in frames) / (gather + engine + stitch)
    return Costs(
        machine, batch=manifest.batch, gather_ms=gather / (len(tops) * len(lefts)), engine_ms=engine / runs,
        stitch_ms=1e6 * stitch / covered(tiling, size), whole=whole, peak_bytes=peak,
        held_bytes=held_bytes(tiling, manifest.output_shape, size),
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def _frames(worker: Worker) -> list[FrameTimes]:
    taken: list[FrameTimes] = []
    begin = time.perf_counter()
    while len(taken) < 3 or (len(taken) < ROUNDS and time.perf_counter() - begin < SECONDS):
        taken.append(worker.frame())
    return taken
