"""`deploy.py run`: images in, masks on disk, one report of what was done and how long each part took."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from engines.errors import DeployError, without_secrets
from engines.files import make_folder
from engines.images import videos as moving
from engines.images.bands import Decoded, shown
from engines.images.inputs import Input, output_names
from engines.images.read import read_picture
from engines.images.write import class_shares, label_counts, write_confidence, write_mask, write_overlay
from engines.rasters.folder import run_rasters
from engines.rasters.gdal import INSTALL, is_raster
from engines.rasters.run import RasterOptions
from engines.report.lines import Tell
from engines.report.rows import IMAGE, RASTER, VIDEO, ImageReport, InputRow, Rows, RunReport
from engines.segmenter import Segmenter
from engines.spec import IGNORE_LABEL, ModelSpec, Pixels
from engines.stream.behind import Behind
from engines.stream.budget import PixelBudget
from engines.stream.flow import Done, Intake, flow
from engines.tiling.device import PARTS, Confidence
from engines.video.folder import check_words, run_videos
from engines.video.report import VideoOptions


@dataclass(frozen=True)
class RunOptions(RasterOptions, VideoOptions):
    """Of images, rasters and videos alike: what some of them do without is theirs to leave alone."""


def run_images(
    segmenter: Segmenter, images: Sequence[Input], output: Path, options: RunOptions,
    budget: PixelBudget | None = None, bundle: Mapping[str, str] | None = None, tell: Tell = lambda row: None,
    whole: bool = True,
) -> RunReport:  # fmt: skip
    """Segment every image.  One that cannot be read or written is reported in `failed`; the rest are finished.

    Threads read images and write masks while this one has the device; images are worked on in the order in which they
    come off the disk, and reported in that of `images`.  Rasters come after them, one by one,
    then videos; see `run_videos`.
    bundle: what says which engine it is.  budget: of pixels in flight.  tell: called with every row as it happens.
    whole: whether the report lists the images, see `Rows`.
    Where the GPU is lost the rest are reported in `failed`, and `lost` says why; what was written stays.
    """
    wanted = segmenter.spec.pixels.but(options.bands, options.scale)  # raises before anything is read
    plan = RunPlan.of(images, output, options)
    make_folder(output)
    rows = Rows(tell, whole=whole)
    for row in plan.existing:
        rows.keep(row)
    begin = time.perf_counter()
    run_pictures(segmenter, plan.pictures, options, wanted, budget, rows.keep)
    seconds = time.perf_counter() - begin
    for path, found in run_rasters(segmenter, plan.rasters, options, bundle or {}, rows.lost):
        rows.keep(InputRow.of_raster(path, plan.rasters[path], found))
    run_videos(
        segmenter, plan.videos, options, rows.lost,
        lambda source, outcome: rows.keep(InputRow.of_video(source, plan.videos[source], outcome)),
    )  # fmt: skip
    report = rows.report((image.shown for image in images), seconds)
    report.contexts = segmenter.device.contexts
    return report


@dataclass(frozen=True)
class RunPlan:
    """What is to be done: input -> what is written; of a raster or a video what opens it -> its labels.

    existing: rows of what is left out because its mask is there.
    """

    pictures: dict[Path, Path]
    rasters: dict[str, Path]
    videos: dict[str, Path]
    existing: list[InputRow]

    @classmethod
    def of(cls, images: Sequence[Input], output: Path, options: RunOptions) -> RunPlan:
        """Raises DeployError where the names or the options do not fit the inputs."""
        targets = {path: output / name for path, name in output_names(images, output).items()}
        sources = {each.path: each.source for each in images}
        videos = {each.path for each in images if each.is_video}
        rasters = {
            path: target.with_suffix(".tif") for path, target in targets.items()
            if path not in videos and is_raster(sources[path], options.max_pixels)
        }  # fmt: skip
        if not rasters and (options.window or options.bbox or options.polygons or options.resume):
            raise DeployError(
                "--window, --bbox, --polygons, --resume: none of the inputs is a raster that GDAL reads and that lies "
                f"on a map; {INSTALL}"
            )
        check_words([each.source for each in images if each.is_video], options)
        index, total = options.shard
        own = {each.path for each in images if _share_of(each, total) == index - 1}
        mine = {path: target for path, target in targets.items() if path in own and path not in rasters}
        pictures = {path: target for path, target in mine.items() if path not in videos}
        plan = cls({}, {}, {}, [])
        for path, target in mine.items():
            if path in videos:
                plan._put_video(sources[path], target.with_suffix(moving.LABELS), options.skip_existing)
        for path, target in {**pictures, **rasters}.items():
            kind = RASTER if path in rasters else IMAGE
            if options.skip_existing and target.exists():
                if path in own:  # of a raster, which all have parts of, one says so
                    plan.existing.append(InputRow(kind, without_secrets(sources[path]), str(target)))
            elif kind == RASTER:
                plan.rasters[sources[path]] = target
            else:
                plan.pictures[path] = target
        return plan

    def _put_video(self, source: str, target: Path, skip_existing: bool) -> None:
        if skip_existing and target.exists():
            self.existing.append(InputRow(VIDEO, without_secrets(source), str(target)))
        else:
            self.videos[source] = target


def run_pictures(
    segmenter: Segmenter, targets: Mapping[Path, Path], options: RunOptions, wanted: Pixels,
    budget: PixelBudget | None, tell: Tell,
) -> None:  # fmt: skip
    """Those that are decoded as a whole."""
    jobs = [ImageJob(*pair) for pair in targets.items()]
    source = Intake(
        jobs, lambda job, admit: read_picture(job.path, options.max_pixels, wanted, admit), lambda found: found.pixels
    )
    quiet = segmenter.device.name == "host"
    with (
        tqdm(total=len(jobs), unit="image", disable=None, leave=False) as bar,
        Behind[ImageJob, InputRow](quiet=quiet) as behind,
    ):
        segmenter.device.on_window = lambda done, total: bar.set_postfix_str(f"window {done}/{total}")

        def collect(*, wait: bool = False) -> None:
            for job, row in behind.done(wait=wait):
                tell(InputRow.failed(IMAGE, job.path, job.target, row) if isinstance(row, DeployError) else row)
                bar.update()

        certainty: Confidence = "bytes" if options.confidence else False
        with closing(flow(segmenter, source, ordered=False, confidence=certainty, budget=budget)) as outcomes:
            for outcome in outcomes:
                behind.put(outcome.job, partial(end, outcome, segmenter.spec, options))
                del outcome  # which holds an image that is else freed only when there is another
                collect()
        collect(wait=True)


def _share_of(image: Input, total: int) -> int:
    """Which of `total` machines works on it: by its name, whatever else there is, be it one of another ending."""
    digest = hashlib.sha256(os.fsencode(image.folder / f"{image.path.stem}.png")).digest()
    return int.from_bytes(digest[:8], "big") % total


@dataclass(frozen=True)
class ImageJob:
    """index: the caller's own."""

    path: Path
    target: Path
    index: int = 0


def end(outcome: Done[ImageJob, Decoded], spec: ModelSpec, options: RunOptions) -> InputRow:
    """Write what became of an image.  Raises DeployError, also what went wrong before."""
    try:
        if outcome.error is not None:
            raise outcome.error
        return _written(outcome, spec, options)
    finally:
        outcome.release()


def _written(outcome: Done[ImageJob, Decoded], spec: ModelSpec, options: RunOptions) -> InputRow:
    picture, frame, mask, target = outcome.read.value, outcome.frame, outcome.mask, outcome.job.target
    assert picture is not None
    assert frame is not None
    assert mask is not None
    begin = time.perf_counter()
    if picture.hidden is not None and not options.keep_nodata:
        mask.labels[picture.hidden] = IGNORE_LABEL
    make_folder(target.parent)
    if options.overlay:
        write_overlay(target.with_suffix(".overlay.jpg"), shown(picture.pixels), mask.labels, spec.palette)
    if mask.confidence is not None:
        write_confidence(target.with_suffix(".confidence.png"), mask.confidence)
    write_mask(target, mask.labels, spec.palette)  # the last: where it is, `skip_existing` takes all for written
    parts = {part: 1e3 * getattr(frame.timings, part) for part in PARTS}
    parts |= {"read": outcome.read.ms, "write": 1e3 * (time.perf_counter() - begin)}
    height, width = mask.labels.shape
    report = ImageReport(
        str(outcome.job.path), mask=str(target), width=width, height=height, windows=frame.timings.windows,
        classes=class_shares(label_counts(mask.labels), mask.labels.size, spec.classes),
        **{f"{part}_ms": taken for part, taken in parts.items()},
        total_ms=sum(parts.values()), views=[view.to_json() for view in frame.views],
    )  # fmt: skip
    return InputRow(IMAGE, report.input, report.mask, report, note=picture.note)
