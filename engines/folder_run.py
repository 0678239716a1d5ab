"""`deploy.py run`: images in, masks on disk, one report of what was done and how long each part took."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engines.errors import DeployError, GpuLostError
from engines.files import make_folder
from engines.images.bands import Decoded, shown
from engines.images.inputs import Input, output_names
from engines.images.read import MAX_PIXELS, read_picture
from engines.images.write import write_confidence, write_mask, write_overlay
from engines.segmenter import Running, Segmenter
from engines.spec import IGNORE_LABEL


@dataclass(frozen=True)
class RunOptions:
    """bands, scale: in place of what the bundle says, see `engines.spec.Pixels`.  keep_nodata: label what the file
    hides (alpha 0, nodata), which else becomes 255.
    """

    overlay: bool = False
    confidence: bool = False
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None
    keep_nodata: bool = False


@dataclass(frozen=True)
class ImageReport:
    """One image: its size in pixels, and milliseconds by part.

    total_ms: from opening it to the last write; on a GPU, the work on other images in between included.
    views: where it was not run as it is: size, windows and times of each view.
    """

    input: str
    mask: str
    width: int
    height: int
    windows: int
    classes: dict[str, float]
    read_ms: float
    gather_ms: float
    engine_ms: float
    stitch_ms: float
    write_ms: float
    total_ms: float
    views: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RunReport:
    """failed: why, by input.  notes: how images were read, where that is not plain.

    left_out: how many files of the input folders are no images, by ending.

    lost: why nothing after the last of `images` could run, or None."""

    images: list[ImageReport] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lost: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = []
        if self.images:
            parts = {
                part: statistics.median(getattr(image, f"{part}_ms") for image in self.images)
                for part in ("read", "gather", "engine", "stitch", "write", "total")
            }
            total = parts.pop("total")
            split = ", ".join(f"{part} {value:.0f}" for part, value in parts.items())
            windows = sum(image.windows for image in self.images)
            lines.append(f"{len(self.images)} image(s), {windows} window(s); median {total:.0f} ms an image ({split})")
        if self.notes:
            more = f" (and {len(self.notes) - 1} more image(s) likewise)" if len(self.notes) > 1 else ""
            lines.append(f"warning: {self.notes[0]}{more}")
        if self.left_out:
            kinds = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in self.left_out.items())
            lines.append(f"left out of the folders, no images: {kinds}")
        lines += [f"skipped {path}: {error}" for path, error in self.failed.items()]
        return "\n".join(lines)


def run_images(segmenter: Segmenter, images: Sequence[Input], output: Path, options: RunOptions) -> RunReport:
    """Segment every image.  One that cannot be read or written is reported in `failed`; the rest are finished.

    As many images are under way at once as the device takes: one is read while another is on the GPU.
    Where the GPU is lost the rest are reported in `failed`, and `lost` says why; what was written stays.
    """
    names = output_names(images, output)
    segmenter.spec.pixels.but(options.bands, options.scale)  # raises before anything is read
    report = RunReport()
    make_folder(output)
    running: deque[_Job] = deque()
    with tqdm(total=len(names), unit="image", disable=None, leave=False) as bar:
        segmenter.device.on_window = lambda done, total: bar.set_postfix_str(f"window {done}/{total}")

        def finish_one() -> None:
            job = running.popleft()
            with _reported(report, job.path):
                _require_gpu(report)
                report.images.append(_finish(segmenter, job, options))
                report.notes += [job.picture.note] if job.picture.note else []
            bar.update()

        for path, name in names.items():
            with _reported(report, path):
                _require_gpu(report)
                running.append(_begin(segmenter, path, output / name, options))
            if str(path) in report.failed:
                bar.update()
            while len(running) >= segmenter.device.in_flight:
                finish_one()
        while running:
            finish_one()
    return report


@contextmanager
def _reported(report: RunReport, path: Path) -> Iterator[None]:
    try:
        yield
    except DeployError as error:
        report.failed[str(path)] = str(error)
        if isinstance(error, GpuLostError):
            report.lost = str(error)


def _require_gpu(report: RunReport) -> None:
    if report.lost is not None:
        raise GpuLostError(report.lost)


@dataclass(frozen=True)
class _Job:
    """An image that was read and is being segmented."""

    path: Path
    target: Path
    picture: Decoded
    running: Running
    clock: _Laps
    read_ms: float


def _begin(segmenter: Segmenter, path: Path, target: Path, options: RunOptions) -> _Job:
    clock = _Laps()
    picture = read_picture(path, options.max_pixels, segmenter.spec.pixels.but(options.bands, options.scale))
    read = clock.lap()
    running = segmenter.start(picture.pixels, options.confidence)
    return _Job(path, target, picture=picture, running=running, clock=clock, read_ms=read)


def _finish(segmenter: Segmenter, job: _Job, options: RunOptions) -> ImageReport:
    mask, target = job.running.mask(), job.target
    job.clock.lap()
    palette = segmenter.spec.palette
    if job.picture.hidden is not None and not options.keep_nodata:
        mask.labels[job.picture.hidden] = IGNORE_LABEL
    make_folder(target.parent)
    write_mask(target, mask.labels, palette)
    if options.overlay:
        write_overlay(target.with_suffix(".overlay.jpg"), shown(job.picture.pixels), mask.labels, palette)
    if mask.confidence is not None:
        write_confidence(target.with_suffix(".confidence.png"), mask.confidence)
    write = job.clock.lap()
    times = job.running.timings
    height, width = mask.labels.shape
    return ImageReport(
        str(job.path), mask=str(target), width=width, height=height, windows=times.windows,
        classes=_shares(mask.labels, segmenter.spec.classes),
        read_ms=job.read_ms, gather_ms=1e3 * times.gather, engine_ms=1e3 * times.engine, stitch_ms=1e3 * times.stitch,
        write_ms=write, total_ms=job.clock.total(), views=[view.to_json() for view in job.running.views],
    )  # fmt: skip


def _shares(labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Share of the image by class name, largest first, absent classes left out."""
    rows = max(1, 2**20 // labels.shape[1])  # bincount makes 8 bytes of each label: a part at a time
    parts = (labels[row : row + rows].ravel() for row in range(0, labels.shape[0], rows))
    counts = sum((np.bincount(part, minlength=256) for part in parts), np.zeros(256, np.int64))
    order = [int(index) for index in counts.argsort()[::-1] if counts[index] and index < len(classes)]
    return {classes[index]: round(float(counts[index]) / labels.size, 6) for index in order}


class _Laps:
    """Milliseconds since the last lap, and since the start."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        lap, self._last = 1e3 * (now - self._last), now
        return lap

    def total(self) -> float:
        return 1e3 * (time.perf_counter() - self._start)
