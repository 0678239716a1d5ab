"""`deploy.py run`: images in, masks on disk, one report of what was done and how long each part took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engines.contract import UInt8
from engines.errors import DeployError, GpuLostError
from engines.files import make_folder
from engines.images.bands import Decoded, shown
from engines.images.inputs import Input, output_names
from engines.images.read import MAX_PIXELS, read_picture
from engines.images.write import label_counts, write_confidence, write_mask, write_overlay
from engines.segmenter import Segmenter
from engines.spec import IGNORE_LABEL, ModelSpec
from engines.stream.behind import Behind
from engines.stream.budget import PixelBudget
from engines.stream.flow import Done, Intake, flow
from engines.tiling.device import PARTS


@dataclass(frozen=True)
class RunOptions:
    """bands, scale: in place of what the bundle says, see `engines.spec.Pixels`.  keep_nodata: label what the file
    hides (alpha 0, nodata), which else becomes 255.  shard: (i, n), every n-th image from the i-th on.
    """

    overlay: bool = False
    confidence: bool = False
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None
    shard: tuple[int, int] = (0, 1)
    keep_nodata: bool = False


@dataclass(frozen=True)
class ImageReport:
    """One image: its size in pixels, and milliseconds by part.

    total_ms: of all parts; images overlap, so that a run takes less than the sum of theirs.
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
    """seconds: from the first read to the last write.

    failed: why, by input.  notes: how images were read, where that is not plain.

    left_out: how many files of the input folders are no images, by ending.

    lost: why nothing after the last of `images` could run, or None."""

    images: list[ImageReport] = field(default_factory=list)
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    lost: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_shards(cls, found: Sequence[dict[str, Any]]) -> RunReport:
        """One of the reports of all shards, as JSON: images in the order in which they were dealt out."""
        report, dealt = cls(), [[ImageReport(**image) for image in each["images"]] for each in found]
        for turn in range(max(map(len, dealt))):
            report.images += [images[turn] for images in dealt if turn < len(images)]
        for each in found:
            report.failed |= each["failed"]
            report.notes += each["notes"]
            report.lost = report.lost or each["lost"]
            report.seconds = max(report.seconds, each["seconds"])
        return report

    def __str__(self) -> str:
        lines = []
        if self.images:
            parts = {
                part: statistics.median(getattr(image, f"{part}_ms") for image in self.images)
                for part in ("read", "gather", "engine", "stitch", "write")
            }
            split = ", ".join(f"{part} {value:.0f}" for part, value in parts.items())
            windows, each = sum(image.windows for image in self.images), 1e3 * self.seconds / len(self.images)
            counted = f"{len(self.images)} image(s), {windows} window(s)"
            lines.append(f"{counted}; {each:.0f} ms an image, side by side; the median's own: {split}")
        if self.notes:
            more = f" (and {len(self.notes) - 1} more image(s) likewise)" if len(self.notes) > 1 else ""
            lines.append(f"warning: {self.notes[0]}{more}")
        if self.left_out:
            kinds = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in self.left_out.items())
            lines.append(f"left out of the folders, no images: {kinds}")
        lines += [f"skipped {path}: {error}" for path, error in self.failed.items()]
        return "\n".join(lines)


def run_images(
    segmenter: Segmenter, images: Sequence[Input], output: Path, options: RunOptions, budget: PixelBudget | None = None
) -> RunReport:  # fmt: skip
    """Segment every image.  One that cannot be read or written is reported in `failed`; the rest are finished.

    Threads read images and write masks while this one has the device; images are worked on in the order in which they
    come off the disk, and reported in that of `images`.  budget: of pixels in flight.
    Where the GPU is lost the rest are reported in `failed`, and `lost` says why; what was written stays.
    """
    names = dict(list(output_names(images, output).items())[options.shard[0] :: options.shard[1]])
    wanted = segmenter.spec.pixels.but(options.bands, options.scale)  # raises before anything is read
    make_folder(output)
    jobs = [_Job(index, path, output / name) for index, (path, name) in enumerate(names.items())]
    source = Intake(
        jobs, lambda job, admit: read_picture(job.path, options.max_pixels, wanted, admit), lambda found: found.pixels
    )
    results: dict[int, _Result] = {}
    begin = time.perf_counter()
    quiet = segmenter.device.name == "host"
    with (
        tqdm(total=len(names), unit="image", disable=None, leave=False) as bar,
        Behind[int, _Result](quiet=quiet) as behind,
    ):
        segmenter.device.on_window = lambda done, total: bar.set_postfix_str(f"window {done}/{total}")

        def collect(*, wait: bool = False) -> None:
            for index, result in behind.done(wait=wait):
                results[index] = result
                bar.update()

        with closing(flow(segmenter, source, ordered=False, confidence=options.confidence, budget=budget)) as outcomes:
            for outcome in outcomes:
                behind.put(outcome.job.index, partial(_end, outcome, segmenter.spec, options))
                del outcome  # which holds an image that is else freed only when there is another
                collect()
        collect(wait=True)
    return _report(jobs, results, time.perf_counter() - begin)


@dataclass(frozen=True)
class _Job:
    index: int
    path: Path
    target: Path


_Result = tuple[ImageReport, str] | DeployError  # the report, and a note on how the image was read


def _report(jobs: Sequence[_Job], results: Mapping[int, _Result], seconds: float) -> RunReport:
    report = RunReport(seconds=seconds)
    for job in jobs:
        result = results[job.index]
        if not isinstance(result, DeployError):
            report.images.append(result[0])
            report.notes += [result[1]] if result[1] else []
            continue
        report.failed[str(job.path)] = str(result)
        if isinstance(result, GpuLostError):
            report.lost = str(result)
    return report


def _end(outcome: Done[_Job, Decoded], spec: ModelSpec, options: RunOptions) -> tuple[ImageReport, str]:
    """Write what became of an image.  Raises DeployError, also what went wrong before."""
    try:
        if outcome.error is not None:
            raise outcome.error
        return _written(outcome, spec, options)
    finally:
        outcome.release()


def _written(outcome: Done[_Job, Decoded], spec: ModelSpec, options: RunOptions) -> tuple[ImageReport, str]:
    picture, frame, mask, target = outcome.read.value, outcome.frame, outcome.mask, outcome.job.target
    assert picture is not None
    assert frame is not None
    assert mask is not None
    begin = time.perf_counter()
    if picture.hidden is not None and not options.keep_nodata:
        mask.labels[picture.hidden] = IGNORE_LABEL
    make_folder(target.parent)
    write_mask(target, mask.labels, spec.palette)
    if options.overlay:
        write_overlay(target.with_suffix(".overlay.jpg"), shown(picture.pixels), mask.labels, spec.palette)
    if mask.confidence is not None:
        write_confidence(target.with_suffix(".confidence.png"), mask.confidence)
    parts = {part: 1e3 * getattr(frame.timings, part) for part in PARTS}
    parts |= {"read": outcome.read.ms, "write": 1e3 * (time.perf_counter() - begin)}
    height, width = mask.labels.shape
    report = ImageReport(
        str(outcome.job.path), mask=str(target), width=width, height=height, windows=frame.timings.windows,
        classes=_shares(mask.labels, spec.classes), **{f"{part}_ms": taken for part, taken in parts.items()},
        total_ms=sum(parts.values()), views=[view.to_json() for view in frame.views],
    )  # fmt: skip
    return report, picture.note


def _shares(labels: UInt8, classes: Sequence[str]) -> dict[str, float]:
    """Share of the image by class name, largest first, absent classes left out."""
    counts = label_counts(labels)
    order = [int(index) for index in counts.argsort()[::-1] if counts[index] and index < len(classes)]
    return {classes[index]: round(float(counts[index]) / labels.size, 6) for index in order}
