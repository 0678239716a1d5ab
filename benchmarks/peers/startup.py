"""`deploy.py run` as a user starts it: seconds until the engine's first call, and memory on small and huge images."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.client import Failed, last_line
from benchmarks.peers.environment import variables
from benchmarks.peers.models import ROOT
from engines.backends import choose_backend
from engines.contract import PRECISIONS
from engines.errors import DeployError

HUGE = 16384  # pixels a side


@dataclass(frozen=True)
class RunRow:
    """Median over the runs of one bundle on one image, each a new process with the engine on disk."""

    model: str
    precision: str
    image: str
    runs: int
    first_call_s: float | None
    total_s: float
    peak_mb: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def precisions() -> tuple[list[str], dict[str, str]]:
    """What edgeseg can build here, and why it cannot build the rest."""
    usable, refused = [], {}
    for precision in PRECISIONS:
        try:
            choose_backend("auto", precision)
        except DeployError as error:
            refused[precision] = str(error)
        else:
            usable.append(precision)
    return usable, refused


def build(words: list[str], bundle: Path, threads: int) -> None:
    """`deploy.py build-engine`.  Raises Failed with its last line."""
    command = [sys.executable, "deploy.py", "build-engine", *words, "-o", str(bundle), "--threads", str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables(threads), check=False)
    if done.returncode:
        raise Failed(f"build-engine, exit {done.returncode}: {last_line(done.stderr)}")


def run(model: str, precision: str, bundle: Path, image: Path, work: Path, threads: int, runs: int) -> RunRow:
    """Raises Failed."""
    reports = []
    for _ in range(runs):
        report = work / "run.json"
        words = ["run", bundle, image, "-o", work / "masks", "--threads", threads, "--max-pixels", 2 * HUGE**2]
        started = time.clock_gettime(time.CLOCK_MONOTONIC)
        command = [sys.executable, "-m", "benchmarks.peers.driver", started, report, *words]
        done = subprocess.run(
            [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, env=variables(threads),
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"run {bundle.name}, exit {done.returncode}: {last_line(done.stderr + done.stdout)}")
        reports.append(json.loads(report.read_text()))
    first = [r["first_call_s"] for r in reports if r["first_call_s"] is not None]
    return RunRow(
        model, precision, image.stem, runs, statistics.median(first) if first else None,
        statistics.median(r["total_s"] for r in reports), max(r["peak_mb"] for r in reports),
    )  # fmt: skip


def huge(work: Path, small: Path, threads: int) -> list[RunRow]:
    """Memory on 2048 x 1024 and on 16384 x 16384 with a network of almost no arithmetic (models.tiny): what the engine
    itself needs does not depend on the image, and everything around it is the same for every network of 19 classes.
    """
    folder = work / "huge"
    folder.mkdir()
    bundle, large = folder / "edgeseg-fp32", folder / f"{HUGE}x{HUGE}.png"
    build(["benchmarks.peers.models:tiny", "--tile", "1024", "--stride", "768"], bundle, threads)
    write_huge(large)
    rows = [run("tiny", "fp32", bundle, image, folder, threads, 1) for image in (small, large)]
    large.unlink()
    return rows


def write_huge(path: Path) -> None:
    """A rendered scene, repeated."""
    import PIL.Image

    from calib.data.scenes import render

    scene = render(2, 1024, 2048).image
    PIL.Image.MAX_IMAGE_PIXELS = None
    PIL.Image.fromarray(np.tile(scene, (HUGE // 1024, HUGE // 2048, 1))).save(path, compress_level=1)


def write_calibration(folder: Path, count: int = 8) -> Path:
    """Rendered scenes, images/ beside labels/, for precisions that calibrate; held out from what is measured."""
    import PIL.Image

    from calib.data.scenes import render

    if not folder.exists():
        (folder / "images").mkdir(parents=True)
        (folder / "labels").mkdir()
        for seed in range(100, 100 + count):
            scene = render(seed, 1024, 2048)
            PIL.Image.fromarray(scene.image).save(folder / "images" / f"{seed}.png")
            PIL.Image.fromarray(scene.labels).save(folder / "labels" / f"{seed}.png")
    return folder
