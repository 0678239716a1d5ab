"""`deploy.py bench`: how long one bundle takes here, how much memory, and under which settings."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from engines import tile
from engines.bundle import MANIFEST, file_sha256, open_bundle
from engines.errors import DeployError
from engines.worker import Worker

PARTS = ("gather", "engine", "stitch")


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
        return cls(p50, p95, p99, float(np.mean(samples)), float(np.min(samples)), len(samples))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class BenchReport:
    """window_ms: the engine alone, one run of settings["batch"] windows.  frame_ms: decoded pixels to label map, of
    which gather, engine, stitch.

    settings: what was in force; see `settings`.  size: (height, width) of the frame in pixels.
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

    @property
    def frames_per_second(self) -> float:
        return 1e3 / self.frame_ms.p50

    def to_json(self) -> dict[str, Any]:
        body = {k: v.to_json() if isinstance(v, Stats) else v for k, v in vars(self).items()}
        pixels = self.size[0] * self.size[1]
        return {**body, "size": list(self.size), "frames_per_second": round(self.frames_per_second, 4),
                "megapixels_per_second": round(pixels * self.frames_per_second / 1e6, 4)}  # fmt: skip

    def __str__(self) -> str:
        height, width = self.size
        force = self.settings
        lines = [
            f"{'bundle':10}{self.bundle}: {force['precision']}, {force['sdk']} on {force['device']}",
            f"{'settings':10}{force['threads']} thread(s), tiling core {force['tiling_core']}, {force['cpu']}",
            f"{'frame':10}{width}x{height}, {self.windows} window(s); loaded in {self.load_ms:.0f} ms",
            f"{'ms':10}{'p50':>10}{'p95':>10}{'p99':>10}{'mean':>10}{'fastest':>10}",
        ]
        rows = {f"{force['batch']} window{'s' * (force['batch'] > 1)}": self.window_ms, "frame": self.frame_ms}
        rows |= {f"  {part}": getattr(self, f"{part}_ms") for part in PARTS}
        for name, s in rows.items():
            lines.append(f"{name:10}" + "".join(f"{v:10.2f}" for v in (s.p50, s.p95, s.p99, s.mean, s.fastest)))
        speed = height * width * self.frames_per_second / 1e6
        lines.append(f"{'speed':10}{self.frames_per_second:.2f} frames/s, {speed:.1f} megapixels/s")
        lines.append(f"{'memory':10}{self.peak_bytes / 1e6:.0f} MB at most, the process as a whole")
        return "\n".join(lines)


def bench(bundle: Path, image: NDArray[np.uint8] | None, size: tuple[int, int] | None, rounds: int, warmup: int,
          threads: int) -> BenchReport:  # fmt: skip
    """Time `bundle` in a process of its own, after `warmup` rounds that do not count.  Raises DeployError.

    image: (H, W, 3) uint8 RGB, or None for noise of `size` (height, width), or of the bundle's window by default: what
    an image shows does not change how long it takes.
    """
    manifest = open_bundle(bundle).manifest
    if image is None:
        height, width = size or (manifest.tiling.window_h, manifest.tiling.window_w)
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    frames, alone = [], []
    with Worker(bundle, threads) as worker, tqdm(total=rounds, unit="round", disable=None, leave=False) as bar:
        worker.put(image)
        for turn in range(-warmup, rounds):
            window, frame = worker.engine(), worker.frame()
            if turn >= 0:
                alone.append(window)
                frames.append(frame)
                bar.update()
        opened, peak = worker.opened, worker.peak_bytes()
    parts = {f"{part}_ms": Stats.of([getattr(f, f"{part}_ms") for f in frames]) for part in ("frame", *PARTS)}
    in_force = {**settings(), "precision": opened.precision, "backend": opened.backend, "sdk": opened.sdk,
                "device": opened.device, "threads": opened.threads, "batch": manifest.batch, "rounds": rounds,
                "warmup": warmup}  # fmt: skip
    return BenchReport(str(bundle), file_sha256(bundle / MANIFEST), in_force, (image.shape[0], image.shape[1]),
                       frames[0].windows, opened.load_ms, Stats.of(alone), **parts, peak_bytes=peak)  # fmt: skip


def settings() -> dict[str, Any]:
    """What the machine adds to a timing: processor, cores of this process, operating system, C core, Python."""
    return {
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "tiling_core": tile.build_info(),
        "governor": _governor(),
    }


def cpu_name() -> str:
    """The processor as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    names = [line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "hardware"))]
    return names[0] if names else "unknown CPU"


def _governor() -> str:
    """The frequency governor of the first core; a timing under ``powersave`` is not one under ``performance``."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "unknown"
