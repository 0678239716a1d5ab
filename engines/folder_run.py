"""`deploy.py run`: images in, masks on disk, one report of what was done and how long each part took."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engines.errors import DeployError, GpuLostError
from engines.files import make_folder
from engines.images.bands import Decoded, shown
from engines.images.inputs import Input, output_names
from engines.images.read import MAX_PIXELS, read_picture
from engines.images.write import class_shares, label_counts, write_confidence, write_mask, write_overlay
from engines.rasters.folder import joined, run_rasters
from engines.rasters.gdal import INSTALL, is_raster
from engines.rasters.polygons import Format
from engines.rasters.run import RasterOptions, RasterReport
from engines.segmenter import Segmenter
from engines.spec import IGNORE_LABEL, ModelSpec
from engines.stream.behind import Behind
from engines.stream.budget import PixelBudget
from engines.stream.flow import Done, Intake, flow
from engines.tiling.device import PARTS


@dataclass(frozen=True)
class RunOptions:
    """bands, scale: in place of what the bundle says, see `engines.spec.Pixels`.  keep_nodata: label what the file
    hides (alpha 0, nodata), which else becomes 255.  shard: (I, N): of N machines, what the I-th works on.
    skip_existing: leave out what has a mask.  window, bbox, polygons, resume: of rasters, see `RasterOptions`.
    """

    overlay: bool = False
    confidence: bool = False
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None
    keep_nodata: bool = False
    shard: tuple[int, int] = (1, 1)
    skip_existing: bool = False
    window: tuple[int, int, int, int] | None = None
    bbox: tuple[float, float, float, float] | None = None
    polygons: Format | None = None
    resume: bool = False

    def of_rasters(self) -> RasterOptions:
        return RasterOptions(**{each.name: getattr(self, each.name) for each in fields(RasterOptions)})


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

    lost: why nothing after the last of `images` could run, or None.  rasters: those among the inputs.
    existing: how many were left out because their masks were there.
    """

    images: list[ImageReport] = field(default_factory=list)
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    lost: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    rasters: list[RasterReport] = field(default_factory=list)
    existing: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_shards(cls, found: Sequence[dict[str, Any]], order: Sequence[Path]) -> RunReport:
        """One of the reports of all shards, as JSON.  order: of the inputs.  Of a raster every shard had a part."""
        report, places = cls(), {str(path): place for place, path in enumerate(order)}
        images = [ImageReport(**image) for each in found for image in each["images"]]
        report.images = sorted(images, key=lambda image: places[image.input])
        for each in found:
            report.failed |= each["failed"]
            report.notes += each["notes"]
            report.existing += each["existing"]
            report.lost = report.lost or each["lost"]
            report.seconds = max(report.seconds, each["seconds"])
        report.rasters = joined([RasterReport(**raster) for each in found for raster in each["rasters"]])
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
        lines += map(str, self.rasters)
        if self.existing:
            lines.append(f"{self.existing} image(s) left out: their masks are there")
        if self.notes:
            more = f" (and {len(self.notes) - 1} more image(s) likewise)" if len(self.notes) > 1 else ""
            lines.append(f"warning: {self.notes[0]}{more}")
        if self.left_out:
            kinds = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in self.left_out.items())
            lines.append(f"left out of the folders, no images: {kinds}")
        lines += [f"skipped {path}: {error}" for path, error in self.failed.items()]
        return "\n".join(lines)


def run_images(
    segmenter: Segmenter, images: Sequence[Input], output: Path, options: RunOptions,
    budget: PixelBudget | None = None, bundle: Mapping[str, str] | None = None,
) -> RunReport:  # fmt: skip
    """Segment every image.  One that cannot be read or written is reported in `failed`; the rest are finished.

    Threads read images and write masks while this one has the device; images are worked on in the order in which they
    come off the disk, and reported in that of `images`.  Rasters come last, one by one.
    bundle: what says which engine it is.  budget: of pixels in flight.
    Where the GPU is lost the rest are reported in `failed`, and `lost` says why; what was written stays.
    """
    targets = {path: output / name for path, name in output_names(images, output).items()}
    rasters = {
        path: target.with_suffix(".tif") for path, target in targets.items() if is_raster(path, options.max_pixels)
    }
    if not rasters and (options.window or options.bbox or options.polygons or options.resume):
        raise DeployError(
            "--window, --bbox, --polygons, --resume: none of the inputs is a raster that GDAL reads and that lies on a "
            f"map; {INSTALL}"
        )
    pictures = {path: target for path, target in targets.items() if path not in rasters}
    report = run_pictures(segmenter, pictures, output, options, budget)
    if rasters:
        there = {path for path, target in rasters.items() if options.skip_existing and target.exists()}
        rasters = {path: target for path, target in rasters.items() if path not in there}
        report.existing += len(there)
        rest = run_rasters(segmenter, rasters, options.of_rasters(), bundle or {}, report.lost)
        report.rasters, report.lost = rest.done, rest.lost
        report.failed |= rest.failed
        report.notes += [raster.note for raster in rest.done if raster.note]
    return report


def run_pictures(
    segmenter: Segmenter, targets: Mapping[Path, Path], output: Path, options: RunOptions, budget: PixelBudget | None
) -> RunReport:  # fmt: skip
    """Those that are decoded as a whole."""
    wanted = segmenter.spec.pixels.but(options.bands, options.scale)  # raises before anything is read
    make_folder(output)
    index, total = options.shard
    mine = {path: target for path, target in targets.items() if _share_of(target, output, total) == index - 1}
    there = {path for path, target in mine.items() if options.skip_existing and target.exists()}
    jobs = [_Job(index, *pair) for index, pair in enumerate(item for item in mine.items() if item[0] not in there)]
    source = Intake(
        jobs, lambda job, admit: read_picture(job.path, options.max_pixels, wanted, admit), lambda found: found.pixels
    )
    results: dict[int, _Result] = {}
    begin = time.perf_counter()
    quiet = segmenter.device.name == "host"
    with (
        tqdm(total=len(jobs), unit="image", disable=None, leave=False) as bar,
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
    report = _report(jobs, results, time.perf_counter() - begin)
    report.existing = len(there)
    return report


def _share_of(target: Path, output: Path, total: int) -> int:
    """Which of `total` machines works on it: by its name, whatever else there is."""
    digest = hashlib.sha256(os.fsencode(target.relative_to(output))).digest()
    return int.from_bytes(digest[:8], "big") % total


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
        classes=class_shares(label_counts(mask.labels), mask.labels.size, spec.classes),
        **{f"{part}_ms": taken for part, taken in parts.items()},
        total_ms=sum(parts.values()), views=[view.to_json() for view in frame.views],
    )  # fmt: skip
    return report, picture.note
