"""One raster through an engine: panel by panel, row by row of windows, into cloud-optimised GeoTIFFs.

Its pixels are those of a whole image: every panel holds all windows that touch what it decides, where they would lie.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engines.contract import UInt8
from engines.errors import DeployError, without_secrets
from engines.files import make_folder
from engines.images.write import class_shares, confidence_bytes
from engines.rasters.chunks import Chunks
from engines.rasters.cut import Part, box_of, part, parts
from engines.rasters.gdal import TILE, RasterFile, open_raster
from engines.rasters.place import Box
from engines.rasters.polygons import Format, require_pyogrio, write_polygons
from engines.rasters.rows import RasterRows
from engines.rasters.whole import certainty_of, counted, found, made, put
from engines.segmenter import Segmenter
from engines.spec import IGNORE_LABEL, ModelSpec, Pixels

HELD = 160 * 2**20  # bytes of logits and pixels of a panel
ROWS = 2 * TILE  # of the raster in a part on disk


@dataclass(frozen=True)
class RasterOptions:
    """window: X, Y, W, H in pixels.  bbox: west, south, east, north on the map.  polygons: also as outlines.

    resume: go on where a run of the same was stopped.  keep_nodata: label what the file hides, too.
    shard: (I, N): the I-th of N runs of rows alone; who finishes the last part puts all together.
    bands, scale: in place of what the bundle says, see `engines.spec.Pixels`.
    """

    confidence: bool = False
    keep_nodata: bool = False
    shard: tuple[int, int] = (1, 1)
    window: tuple[int, int, int, int] | None = None
    bbox: tuple[float, float, float, float] | None = None
    polygons: Format | None = None
    resume: bool = False
    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None

    @property
    def goes_on(self) -> bool:
        """Whether what a run of the same has finished counts, and so does all of it."""
        return self.resume or self.shard[1] > 1


@dataclass
class RasterReport:
    """Of one raster: pixels and windows (of those that were run now), share of each class, seconds by part.

    resumed: the share of it that was finished before.  complete: whether the results are written; where not, other
    shards have work to do.
    """

    input: str
    mask: str
    width: int
    height: int
    windows: int = 0
    resumed: float = 0.0
    complete: bool = True
    classes: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    polygons: int | None = None
    note: str = ""

    def __str__(self) -> str:
        lines = [f"{self.input}: {self.width}x{self.height} pixels, {self.windows} windows"]
        lines += [f"{self.resumed:.1%} of it was there"] if self.resumed else []
        lines += [f"{self.polygons} polygons"] if self.polygons is not None else []
        lines += [", ".join(f"{part} {seconds:.1f} s" for part, seconds in self.seconds.items())]
        lines += [] if self.complete else ["other shards have parts to do"]
        return "; ".join(lines)


def run_raster(
    segmenter: Segmenter, path: str | Path, target: Path, options: RasterOptions, bundle: Mapping[str, Any]
) -> RasterReport:  # fmt: skip
    """Write the labels of the raster `path` to `target`, NAME.tif, and what else the options ask for beside it.

    path: a file, or what else GDAL knows by a name.
    Labels are those of the whole raster, whatever is cut out; nodata is 255.  bundle: what says which engine it is.
    Memory does not grow with the raster.  Raises DeployError.
    """
    begin = time.perf_counter()
    spec = segmenter.spec
    pixels = spec.pixels.but(options.bands, options.scale)
    if not segmenter.views.plain:
        raise DeployError(f"raster {path}: several views, and other sizes, are for images in memory; run without them")
    if options.polygons is not None:
        require_pyogrio(options.polygons)  # now, and not after the work
    with open_raster(path) as file:
        box = box_of(file, options.window, options.bbox)
        report = RasterReport(without_secrets(str(path)), str(target), width=box[3] - box[2], height=box[1] - box[0])
        report.complete, report.seconds["windows"] = False, 0.0
        identity = {
            **file.identity(), "box": list(box),
            "bands": pixels.bands, "scale": pixels.scale, "keep_nodata": options.keep_nodata,
            "confidence": options.confidence, "tiling": segmenter.tiling.to_json(), "threshold": spec.threshold,
            "bundle": dict(bundle),
        }  # fmt: skip
        chunks = Chunks(
            target.parent / f".{target.name}.parts", identity, (report.height, report.width),
            file.place.moved(box[0], box[2]),
        )  # fmt: skip
        if _own(box, options.shard):  # else it may come after all is put together, and would leave a folder for good
            make_folder(target.parent)
            chunks.begin(options.goes_on)
        if _there(report, target, chunks, spec, options) or not _own(box, options.shard):
            return report
        before = _windows_run(segmenter)
        try:
            with tqdm(total=report.height * report.width, unit="px", unit_scale=True, disable=None, leave=False) as bar:
                done = _Work(segmenter, file=file, box=box, pixels=pixels, options=options, chunks=chunks).all(bar)
        except DeployError:
            if _there(report, target, chunks, spec, options):
                return report  # another with the same work has put all together meanwhile
            raise
        report.note = "; ".join(filter(None, (file.note(), done.note, _outlines(file, options))))
        report.resumed = round(done.found / (report.height * report.width), 4)
        report.windows = _windows_run(segmenter) - before
    report.seconds["windows"] = round(time.perf_counter() - begin, 3)
    with chunks.claimed() as mine:
        if done.complete and mine:
            _finish(report, target, chunks, spec, options)
            return report
    _there(report, target, chunks, spec, options)
    return report


def _there(report: RasterReport, target: Path, chunks: Chunks, spec: ModelSpec, options: RasterOptions) -> bool:
    """Whether the results of such a run are there, where that counts: they are reported then, and no parts stay."""
    begin = time.perf_counter()
    counts = found(chunks.key, target, options.confidence, options.polygons) if options.goes_on else None
    if counts is None:
        return False
    report.complete, report.resumed = True, 1.0
    report.classes = class_shares(counts, report.height * report.width, spec.classes)
    with chunks.claimed() as mine:
        if mine:
            chunks.end()
    report.seconds["files"] = round(time.perf_counter() - begin, 3)
    return True


def _finish(
    report: RasterReport, target: Path, chunks: Chunks, spec: ModelSpec, options: RasterOptions
) -> None:  # fmt: skip
    """All parts become files."""
    report.complete = True
    begin = time.perf_counter()
    counts = counted(chunks.parts("labels"))
    report.classes = class_shares(counts, report.height * report.width, spec.classes)
    whole = made(chunks, "labels", target, counts, spec, options.polygons or "")
    certain = made(chunks, "confidence", target, counted(chunks.parts("confidence"))) if options.confidence else None
    report.seconds["files"] = round(time.perf_counter() - begin, 3)
    if options.polygons is not None:
        begin = time.perf_counter()
        drawn = chunks.folder / f"whole.{options.polygons}"
        report.polygons = write_polygons(whole, drawn, options.polygons, spec.classes)
        put(drawn, target.with_suffix(drawn.suffix))
        report.seconds["polygons"] = round(time.perf_counter() - begin, 3)
    if certain is not None:
        put(certain, certainty_of(target))
    put(whole, target)  # the last in its place, as masks of images
    chunks.end()


def _outlines(file: RasterFile, options: RasterOptions) -> str:
    """What the user should hear of the polygons, or ""."""
    if options.polygons is None or file.place.known or not file.place.located:
        return ""
    return (
        f"{file.path.name} lies on a map by {file.place.located}: its outlines are in pixels; warp it first (rio warp)"
    )


def _own(box: Box, shard: tuple[int, int]) -> range:
    """The rows in which the shard's parts begin: none for some, where there are more shards than parts."""
    starts, (index, total) = range(box[0], box[1], ROWS), shard
    return starts[(index - 1) * len(starts) // total : index * len(starts) // total]


class _Work:
    """The windows of a raster.  found: pixels of parts that were there.  complete: whether all parts are now."""

    def __init__(
        self, segmenter: Segmenter, file: RasterFile, box: Box, pixels: Pixels, options: RasterOptions, chunks: Chunks
    ) -> None:  # fmt: skip
        self._segmenter, self._file, self._box, self._pixels = segmenter, file, box, pixels
        self._options, self._chunks = options, chunks
        self.found, self.note, self.complete = 0, "", False

    def all(self, bar: Any) -> _Work:
        tiling, file = self._segmenter.tiling, self._file
        tops, lefts = tiling.placements(file.height, file.width)
        margin = tiling.margin
        panels = parts(
            lefts, tiling.labelled[1], file.width, self._most(), TILE, self._box[2:], max(margin[1], margin[3])
        )  # fmt: skip
        starts, mine = _own(self._box, (1, 1)), _own(self._box, self._options.shard)
        for columns in panels:
            pending = []
            for kept in self._cut(columns, mine):
                if self._chunks.done("labels", self._inside(kept)):
                    self.found += _pixels(kept)
                    bar.update(_pixels(kept))
                else:
                    pending.append(kept)
            for rows in _runs(pending):
                seen = part(tops, tiling.labelled[0], file.height, rows, max(margin[0], margin[2]))
                self._part(seen, columns, bar)
        self.complete = all(
            self._chunks.done("labels", self._inside(kept)) for columns in panels for kept in self._cut(columns, starts)
        )
        return self

    def _cut(self, columns: Part, starts: range) -> list[Box]:
        """The parts of a panel on disk, of those that begin in rows `starts`."""
        return [(row, min(row + ROWS, self._box[1]), *columns.kept) for row in starts]

    def _part(self, rows: Part, columns: Part, bar: Any) -> None:
        """A run of rows in a panel of columns."""
        source = RasterRows(
            self._file, (*rows.seen, *columns.seen), self._pixels, wanted=(*rows.kept, *columns.kept),
            keep_nodata=self._options.keep_nodata,
        )  # fmt: skip
        inside = slice(columns.kept[0] - columns.seen[0], columns.kept[1] - columns.seen[0])
        width = columns.kept[1] - columns.kept[0]
        held: list[tuple[UInt8, UInt8 | None]] = []
        row, count = rows.kept[0], 0
        for band in self._segmenter.bands(source, "bytes" if self._options.confidence else False):
            hidden = source.hidden((band.row0, band.row1))
            labels, certainty = band.labels, band.confidence
            labels[hidden] = IGNORE_LABEL
            skip = max(0, rows.kept[0] - rows.seen[0] - band.row0)
            end = max(0, rows.kept[1] - rows.seen[0] - band.row0)
            quantised = None
            if certainty is not None:
                certainty[hidden] = 0
                quantised = confidence_bytes(certainty[skip:end, inside])
            held.append((labels[skip:end, inside], quantised))
            count += len(held[-1][0])
            while count >= ROWS or (count and row + count == rows.kept[1]):
                size = min(ROWS, count)
                held = self._put((row, row + size, *columns.kept), held)
                row, count = row + size, count - size
                bar.update(size * width)
        self.note = self.note or source.note()

    def _put(self, kept: Box, held: list[tuple[UInt8, UInt8 | None]]) -> list[tuple[UInt8, UInt8 | None]]:
        """Write the first rows of what is held; returns the rest."""
        size, box = kept[1] - kept[0], self._inside(kept)
        labels = np.concatenate([part for part, _ in held])
        certain = [part for _, part in held if part is not None]
        certainty = np.concatenate(certain) if certain else None
        if certainty is not None:
            self._chunks.put("confidence", box, certainty[:size], 0)
        self._chunks.put("labels", box, labels[:size], IGNORE_LABEL)  # last: it says that the part is done
        rest = labels[size:].copy()
        return [(rest, None if certainty is None else certainty[size:].copy())] if len(rest) else []

    def _inside(self, kept: Box) -> Box:
        """From the raster's pixels to those that are written."""
        box = self._box
        return kept[0] - box[0], kept[1] - box[0], kept[2] - box[2], kept[3] - box[2]

    def _most(self) -> int:
        """Windows side by side whose logits and pixels fit in `HELD`."""
        tiling, spec = self._segmenter.tiling, self._segmenter.spec
        stride = spec.logits_stride
        logits = 4 * spec.channels * (tiling.window_h // stride) * (tiling.window_w // stride)
        rows = -(-tiling.window_h // tiling.stride_h) + 1
        pixels = tiling.window_h * tiling.stride_w * (2 * len(spec.mean) + 2)
        least = -(-(tiling.window_w + TILE) // tiling.stride_w) + 1
        fit: int = HELD // (rows * logits + pixels)
        return max(least, fit)


def _runs(boxes: list[Box]) -> Iterator[tuple[int, int]]:
    """Rows [r0, r1) of boxes that follow one another."""
    begin = end = -1
    for row0, row1, *_ in boxes:
        if row0 != end:
            if end > begin:
                yield begin, end
            begin = row0
        end = row1
    if end > begin:
        yield begin, end


def _pixels(box: Box) -> int:
    return (box[1] - box[0]) * (box[3] - box[2])


def _windows_run(segmenter: Segmenter) -> int:
    count: int = segmenter.device.timings.windows
    return count
