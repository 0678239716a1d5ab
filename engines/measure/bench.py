"""`deploy.py bench`: how long one bundle takes here, how much energy and memory, and under which settings."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engines.bundle import MANIFEST, open_bundle
from engines.contract import UInt8
from engines.errors import DeployError
from engines.files import file_sha256
from engines.gpu.info import Fingerprint
from engines.machine.limits import cores
from engines.machine.sysfs import cpu_name
from engines.measure.conditions import conditions, governor, say
from engines.measure.power import Energy, NoMeter, find_meter, measured
from engines.measure.worker import FrameTimes, OnDevice, Worker
from engines.tiling import core
from engines.tiling.device import PARTS

ENERGY_S = 2.0  # of work at least, where energy can be measured: power readings are means over up to a second


@dataclass(frozen=True)
class Stats:
    """Milliseconds over `count` samples; percentiles are interpolated, so p99 of few samples is near the slowest."""

    p50: float
    p95: float
    p99: float
    mean: float
    fastest: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Stats:
        if not len(samples):
            raise DeployError("timing: got no samples, expected at least one round")
        p50, p95, p99 = (float(v) for v in np.percentile(samples, (50, 95, 99)))
        return cls(
            p50, p95=p95, p99=p99, mean=float(np.mean(samples)), fastest=float(np.min(samples)), count=len(samples)
        )

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Milliseconds a frame, from decoded pixels to label map, and its three parts.

    On a GPU the parts may be of other, slower rounds than the frame, and need not add up to it.
    """

    frame: Stats
    gather: Stats
    engine: Stats
    stitch: Stats

    @classmethod
    def of(cls, frames: Sequence[FrameTimes], split: Sequence[FrameTimes]) -> Timing:
        """split: the frames whose parts were timed."""
        parts = {part: Stats.of([getattr(each, f"{part}_ms") for each in split]) for part in PARTS}
        return cls(Stats.of([each.frame_ms for each in frames]), **parts)


@dataclass(frozen=True)
class Throughput:
    """Frames one after the other, with `in_flight` under way at once, and the energy that they took together."""

    frames: int
    seconds: float
    in_flight: int
    energy: Energy

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds

    @property
    def joules_per_frame(self) -> float | None:
        return None if self.energy.joules is None else self.energy.joules / self.frames

    def to_json(self) -> dict[str, Any]:
        return {"frames": self.frames, "seconds": self.seconds, "in_flight": self.in_flight,
                "frames_per_second": round(self.frames_per_second, 4), "joules_per_frame": self.joules_per_frame,
                "energy": self.energy.to_json()}  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{'in flight':10}{self.frames_per_second:.2f} frames/s with {self.in_flight} under way at once"]
        if self.joules_per_frame is None:
            return f"{lines[0]}\n{'energy':10}not measured: {self.energy.reason}"
        mean = f"{self.energy.watts:.1f} W mean over {self.energy.seconds:.1f} s"
        return f"{lines[0]}\n{'energy':10}{self.joules_per_frame:.3g} J a frame, {mean} ({self.energy.source})"


@dataclass(frozen=True)
class BenchReport:
    """window_ms: the engine alone, one run of settings["batch"] windows.  frame_ms: decoded pixels to label map, of
    which gather, engine, stitch.

    On a GPU these three are measured in rounds of their own, because that takes time and forbids a graph, and window_ms
    is between memory of the GPU, by its events, as a graph where the engine can be recorded.
    settings: what was in force; see `settings` and `conditions`.  size: (height, width) of the frame in pixels.
    """

    bundle: str
    manifest_sha256: str
    settings: dict[str, Any]
    size: tuple[int, int]
    windows: int
    load_ms: float
    window_ms: Stats
    frame_ms: Stats
    gather_ms: Stats
    engine_ms: Stats
    stitch_ms: Stats
    peak_bytes: int
    throughput: Throughput

    @property
    def frames_per_second(self) -> float:
        return 1e3 / self.frame_ms.p50

    def to_json(self) -> dict[str, Any]:
        body = {k: v.to_json() if isinstance(v, Stats | Throughput) else v for k, v in vars(self).items()}
        pixels = self.size[0] * self.size[1]
        return {**body, "size": list(self.size), "frames_per_second": round(self.frames_per_second, 4),
                "megapixels_per_second": round(pixels * self.frames_per_second / 1e6, 4)}  # fmt: skip

    def __str__(self) -> str:
        height, width = self.size
        force = self.settings
        lines = [
            f"{'bundle':10}{self.bundle}: {force['precision']}, {force['sdk']} on {force['device']}",
            f"{'settings':10}{force['threads']} thread(s), tiling core {force['tiling_core']}, {force['cpu']}",
            *_say_conditions(force),
            f"{'frame':10}{width}x{height}, {self.windows} window(s); loaded in {self.load_ms:.0f} ms",
            f"{'ms':10}{'p50':>10}{'p95':>10}{'p99':>10}{'mean':>10}{'fastest':>10}",
        ]
        rows = {f"{force['batch']} window{'s' * (force['batch'] > 1)}": self.window_ms, "frame": self.frame_ms}
        rows |= {f"  {part}": getattr(self, f"{part}_ms") for part in PARTS}
        for name, s in rows.items():
            lines.append(f"{name:10}" + "".join(f"{v:10.2f}" for v in (s.p50, s.p95, s.p99, s.mean, s.fastest)))
        speed = height * width * self.frames_per_second / 1e6
        lines.append(f"{'speed':10}{self.frames_per_second:.2f} frames/s, {speed:.1f} megapixels/s")
        lines.append(str(self.throughput))
        held = force.get("gpu_memory")
        of_gpu = "" if held is None else f"; {held / 1e6:.0f} MB of the GPU in use, by all programs"
        lines.append(f"{'memory':10}{self.peak_bytes / 1e6:.0f} MB at most, the process as a whole{of_gpu}")
        return "\n".join(lines)


def bench(bundle: Path, image: UInt8 | None, size: tuple[int, int] | None, rounds: int, warmup: int,
          threads: int, host_code: bool = False) -> BenchReport:  # fmt: skip
    """Time `bundle` in a process of its own, after `warmup` rounds that do not count.  Raises DeployError.

    image: (H, W, 3) uint8 RGB, or None for noise of `size` (height, width), or of the bundle's window by default: what
    an image shows does not change how long it takes.  host_code: as for open_segmenter.
    """
    manifest = open_bundle(bundle).manifest
    if image is None:
        height, width = size or (manifest.tiling.window_h, manifest.tiling.window_w)
        image = np.random.default_rng(0).integers(0, 256, (height, width, len(manifest.spec.mean)), np.uint8)
    with (
        Worker(bundle, threads, host_code) as worker,
        tqdm(total=rounds, unit="round", disable=None, leave=False) as bar,
    ):
        worker.put(image)
        taken = _take(worker, rounds, warmup, bar)
        opened, peak, on = worker.opened, worker.peak_bytes(), worker.device()
    timing = Timing.of(taken.frames, taken.split)
    in_force = {**settings(), "precision": opened.precision, "backend": opened.backend, "sdk": opened.sdk,
                "device": opened.device, "threads": opened.threads, "rounds": rounds, "warmup": warmup,
                "runs_on": on.name, "graph": on.graph, "contexts": on.contexts,
                "transfers": on.transfers, "in_flight": on.in_flight, "gpu_memory": on.memory, "batch": manifest.batch,
                "before": taken.before, "after": taken.after}  # fmt: skip
    return BenchReport(
        str(bundle), manifest_sha256=file_sha256(bundle / MANIFEST), settings=in_force,
        size=(image.shape[0], image.shape[1]), windows=taken.frames[0].windows, load_ms=opened.load_ms,
        window_ms=Stats.of(taken.alone), **{f"{part}_ms": stats for part, stats in vars(timing).items()},
        peak_bytes=peak, throughput=taken.throughput,
    )  # fmt: skip


@dataclass
class _Taken:
    """alone: milliseconds of the engine.  split: frames whose parts were timed, which on the host are `frames`."""

    throughput: Throughput
    alone: list[float] = field(default_factory=list)
    frames: list[FrameTimes] = field(default_factory=list)
    split: list[FrameTimes] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def _take(worker: Worker, rounds: int, warmup: int, bar: Any) -> _Taken:
    """Latency, then frames in flight and their energy, then the parts, where they need rounds of their own."""
    on = worker.device()
    gpu = _on_gpu(on, worker.opened.device)
    alone, frames, before = [], [], {}
    if on.in_flight > 1:
        worker.frames(2 * on.in_flight)  # each place for a frame is made, and its graph recorded, on first use
    for turn in range(-warmup, rounds):
        if turn == 0:
            before = conditions(gpu)
        window, frame = worker.engine(), worker.frame()
        if turn >= 0:
            alone.append(window)
            frames.append(frame)
            bar.update()
    bar.set_postfix_str("frames in flight")
    throughput = _throughput(worker, on, gpu, frames)
    taken = _Taken(throughput, alone, frames=frames, split=frames, before=before, after=conditions(gpu))
    if on.name != "host":
        bar.set_postfix_str("parts")
        worker.time_parts(True)
        taken.split = [worker.frame() for _ in range(-warmup, rounds)][warmup:]
        worker.time_parts(False)
    return taken


def _throughput(worker: Worker, on: OnDevice, gpu: bool, frames: Sequence[FrameTimes]) -> Throughput:
    """As many frames as there were rounds, or as make up ENERGY_S where there is something to measure."""
    meter, count = find_meter(gpu), len(frames)
    if not isinstance(meter, NoMeter):
        count = max(count, math.ceil(1e3 * ENERGY_S / min(frame.frame_ms for frame in frames)))
    with measured(meter) as energy:
        seconds = worker.frames(count)
    return Throughput(count, seconds, on.in_flight, energy)


def _on_gpu(on: OnDevice, fingerprint: str) -> bool:
    return on.name != "host" or Fingerprint.parse(fingerprint) is not None


def _say_conditions(force: dict[str, Any]) -> list[str]:
    """How the device was driven, and what it ran at: nothing on a CPU, whose settings are said already."""
    driven = [f"runs on {force['runs_on']}", f"batch {force['batch']}", f"graph {force['graph']}",
              f"execution contexts {force['contexts']}", f"transfers {force['transfers']}"]  # fmt: skip
    lines = [] if force["runs_on"] == "host" else [f"{'device':10}{', '.join(driven)}"]
    before, after = say(force["before"]), say(force["after"])
    if before or after:
        lines.append(f"{'before':10}{before}")
        lines.append(f"{'after':10}{after}")
    return lines


def settings() -> dict[str, Any]:
    """What the machine adds to a timing: processor, cores of this process, operating system, C core, Python."""
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "tiling_core": core.build_info(),
        "governor": governor(),
    }
