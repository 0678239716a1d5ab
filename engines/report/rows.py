"""What became of one input, and the report of them all."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import DeployError, GpuLostError, in_a_line, without_secrets
from engines.images import videos as moving
from engines.rasters.folder import joined
from engines.rasters.run import RasterReport
from engines.video.report import VideoReport

IMAGE, RASTER, VIDEO = "image", "raster", "video"  # kinds of rows
_PARTS = ("read", "gather", "engine", "stitch", "write")


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


@dataclass(frozen=True)
class InputRow:
    """One input.  mask: where it is, or would be.  report: None where nothing was done now; with an error, of what was
    done before it.  note: how it was read, where that is not plain.  lost: whether the error is that the GPU is.
    worker: who did it, where not this process.
    """

    kind: str
    input: str
    mask: str
    report: ImageReport | RasterReport | VideoReport | None = None
    error: str | None = None
    note: str = ""
    lost: bool = False
    worker: str = ""

    @classmethod
    def of_raster(cls, path: Path | str, target: Path, found: RasterReport | DeployError) -> InputRow:
        if isinstance(found, DeployError):
            return cls.failed(RASTER, without_secrets(str(path)), target, found)
        return cls(RASTER, without_secrets(str(path)), str(target), found, note=found.note)

    @classmethod
    def of_video(cls, source: str, target: Path, found: VideoReport | DeployError) -> InputRow:
        if isinstance(found, DeployError):
            return cls.failed(VIDEO, without_secrets(source), target, found)
        note, error = "; ".join(found.notes), found.broken or None
        return cls(VIDEO, found.input, found.mask, found, error=error, note=note, lost=found.lost)

    @classmethod
    def failed(cls, kind: str, path: Path | str, target: Path, error: DeployError) -> InputRow:
        return cls(kind, str(path), str(target), error=str(error), lost=isinstance(error, GpuLostError))

    def renamed(self, path: str, target: str) -> InputRow:
        report = None if self.report is None else replace(self.report, input=path, mask=target)
        return replace(self, input=path, mask=target, report=report)

    @property
    def status(self) -> str:
        """`part`: of a raster of which other shards have parts to do, of a video that was stopped."""
        if self.error is not None:
            return "failed"
        if self.report is None:
            return "skipped"
        return "done" if getattr(self.report, "complete", True) else "part"

    def to_json(self) -> dict[str, Any]:
        """Of its own first, then those of the report, whose input and mask are the same."""
        own: dict[str, Any] = {"status": self.status, "kind": self.kind, "input": self.input, "mask": self.mask}
        own |= {"error": self.error, "note": self.note}
        return own if self.report is None else own | asdict(self.report) | {"note": self.note}


class ImageTotals:
    """Of any number of images what a summary says, in 20 bytes each."""

    def __init__(self) -> None:
        self._parts = {part: array("f") for part in _PARTS}
        self._windows = 0

    def add(self, image: ImageReport) -> None:
        self._windows += image.windows
        for part, values in self._parts.items():
            values.append(getattr(image, f"{part}_ms"))

    def said(self, seconds: float) -> list[str]:
        """At most one line.  seconds: that all took, side by side."""
        count = len(self._parts["read"])
        if not count:
            return []
        split = ", ".join(f"{part} {np.median(values):.0f}" for part, values in self._parts.items())
        counted = f"{count} image(s), {self._windows} window(s)"
        return [f"{counted}; {1e3 * seconds / count:.0f} ms an image, side by side; the median's own: {split}"]


class Rows:
    """Rows as they come: each is handed to `tell`, and they become a report.

    whole: whether that lists the images, of which else only totals are kept: a row takes a kilobyte.
    """

    def __init__(self, tell: Callable[[InputRow], None], *, whole: bool) -> None:
        self._tell, self._whole = tell, whole
        self._kept: list[InputRow] = []
        self._totals, self._existing = ImageTotals(), 0

    def keep(self, row: InputRow) -> None:
        self._tell(row)
        if isinstance(row.report, ImageReport):
            self._totals.add(row.report)
        if row.status == "skipped":
            self._existing += 1
        elif self._whole or row.kind != IMAGE or row.error is not None or row.note:
            self._kept.append(row)

    @property
    def lost(self) -> str | None:
        """Why the GPU is, where it is."""
        return next((row.error for row in self._kept if row.lost), None)

    def report(self, order: Iterable[Path | str], seconds: float) -> RunReport:
        """order: of the inputs, whatever that of the rows, of which a raster may have several."""
        report = RunReport(seconds=seconds, existing=self._existing, totals=self._totals)
        places = {row.input: 0 for row in self._kept}
        for place, path in enumerate(map(str, order)):
            if path in places:
                places[path] = place
        for row in sorted(self._kept, key=lambda row: places[row.input]):
            report._add(row)
        report.rasters = joined(report.rasters)
        return report


def contexts_of(found: Mapping[str, str]) -> str:
    """One word for all devices that say the same, else each with its name."""
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{where}: {said}" for where, said in found.items())


@dataclass
class RunReport:
    """seconds: from the first read to the last write.

    failed: why, by input.  notes: how images were read, where that is not plain.

    left_out: how many files of the input folders are no images, by ending.

    lost: why nothing after the last of `images` could run, or None.  rasters, videos: those among the inputs.
    existing: how many were left out because their masks were there.  totals: of all images, also those not listed.
    contexts: how many execution contexts took turns on a GPU in the end, ``1: `` and why where two were wanted; of
    several that differ, by GPU or worker.
    """

    images: list[ImageReport] = field(default_factory=list)
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    lost: str | None = None
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    rasters: list[RasterReport] = field(default_factory=list)
    existing: int = 0
    videos: list[VideoReport] = field(default_factory=list)
    totals: ImageTotals = field(default_factory=ImageTotals)
    contexts: str = ""

    @property
    def exit_code(self) -> int:
        stopped = not all(video.complete for video in self.videos)
        return 130 if stopped else 2 if self.failed else 0

    def ended(self, unlogged: str = "") -> int:
        """The exit code.  unlogged: what of it could not be told as it happened, which hides nothing that is worse.

        Raises GpuLostError; and DeployError where that is all, or the inputs that failed are.
        """
        if self.lost is not None:
            raise GpuLostError("; ".join(filter(None, (self.lost, unlogged))))
        if unlogged and self.exit_code in (0, DeployError.exit_code):
            raise DeployError(unlogged)
        if unlogged:
            print(f"error: {unlogged}", file=sys.stderr)
        return self.exit_code

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "totals"}

    def _add(self, row: InputRow) -> None:
        if row.error is not None:
            self.failed[row.input] = row.error
            self.lost = row.error if row.lost else self.lost
        if isinstance(row.report, RasterReport):
            self.rasters.append(row.report)
        elif isinstance(row.report, VideoReport):
            self.videos.append(row.report)
        elif row.report is not None:
            self.images.append(row.report)
        self.notes += [row.note] if row.note else []

    @classmethod
    def of_shards(cls, found: Sequence[Mapping[str, Any]], order: Sequence[Path | str]) -> RunReport:
        """One of the reports of all shards, as JSON.  order: of the inputs.  Of a raster every shard had a part."""
        report, places = cls(), {str(path): place for place, path in enumerate(order)}
        images = [ImageReport(**image) for each in found for image in each["images"]]
        report.images = sorted(images, key=lambda image: places[image.input])
        for image in images:
            report.totals.add(image)
        for each in found:
            report.failed |= each["failed"]
            report.notes += each["notes"]
            report.existing += each["existing"]
            report.lost = report.lost or each["lost"]
            report.seconds = max(report.seconds, each["seconds"])
            report.videos += [VideoReport(**video) for video in each["videos"]]
        report.contexts = contexts_of({f"GPU {index}": each["contexts"] for index, each in enumerate(found)})
        report.rasters = joined([RasterReport(**raster) for each in found for raster in each["rasters"]])
        return report

    def __str__(self) -> str:
        lines = self.totals.said(self.seconds)
        lines += map(str, [*self.rasters, *self.videos])
        if self.existing:
            lines.append(f"{self.existing} image(s) left out: their masks are there")
        if self.notes:
            more = f" (and {len(self.notes) - 1} more image(s) likewise)" if len(self.notes) > 1 else ""
            lines.append(f"warning: {self.notes[0]}{more}")
        if self.left_out:
            kinds = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in self.left_out.items())
            videos = f"; for the videos: {moving.INSTALL}" if self.left_out.keys() & moving.SUFFIXES else ""
            lines.append(f"left out of the folders, no images: {kinds}{videos}")
        lines += [f"skipped {path}: {error}" for path, error in self.failed.items()]
        return "\n".join(map(in_a_line, lines))
