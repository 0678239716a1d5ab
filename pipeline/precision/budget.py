"""What `--precision auto` is held to: images that plans are scored on, and others for the engine that ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calib.data.datasets import Dataset
from calib.ranges.split import Photograph, Split
from calib.ranges.windows import draw_from
from engines.contract import Backend, BuildConfig, Float32, Log, UInt8
from engines.errors import GateError
from engines.segmenter import Segmenter
from engines.tiling.core import labels_of
from pipeline.checkpoints.sources import Source
from pipeline.evaluation.evaluate import areas
from pipeline.evaluation.statistics import Counts, Interval, Statistic, equal_labels, loss_interval, miou
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.precision.planned import emulated
from pipeline.provenance import not_seen
from pipeline.request import BuildRequest
from pipeline.side_by_side import compiled

HELD_OUT = 4  # windows, at least


@dataclass(frozen=True)
class Panel:
    """Images that engines are scored on.

    count: of an engine, (N, ...) counts of the N images.  points: of their sum, 0..100: mIoU, or percent of labels.
    """

    images: int
    count: Callable[[Segmenter], Counts]
    points: Statistic


@dataclass(frozen=True)
class Jury:
    """What the shipped engine is measured on.  before: fp32's counts.  fresh: no plan was chosen on these images."""

    panel: Panel
    before: Counts
    max_drop: float
    fresh: bool

    def measure(self, segmenter: Segmenter) -> Interval:
        return loss_interval(self.before, self.panel.count(segmenter), self.panel.points)

    def require(self, found: Interval) -> None:
        """Raise GateError where the loss may exceed the budget."""
        if found.high > self.max_drop:
            raise GateError(
                f"the engine loses {found} on {self}, allowed {self.max_drop:g} (--max-drop); give other photographs "
                "to calibrate on, --precision auto, or a finer precision"
            )

    def to_json(self) -> dict[str, Any]:
        return {"max_drop": self.max_drop, "images": self.panel.images, "fresh": self.fresh}

    def __str__(self) -> str:
        other = "that nothing was decided on" if self.fresh else "that it was chosen on, too few to spare others"
        return f"{self.panel.images} image(s) {other}"


@dataclass(frozen=True)
class Panels:
    """selection: to choose on.  report: other images; None where there are too few.  labelled: whether points are mIoU.

    windows: some inputs (1, 3, H, W) of the selection, for what is measured of each block.  record: for report.json.
    """

    selection: Panel
    report: Panel | None
    windows: list[Float32]
    labelled: bool
    record: dict[str, Any]


def panels(
    request: BuildRequest, source: Source, graph: OnnxGraph, division: Split | None, inputs: Sequence[Float32],
    seen: Sequence[Photograph] | None, log: Log,
) -> Panels:  # fmt: skip
    """Of the budget's data set, else of the photographs that are held out, else of what the build is verified on.

    seen: what was calibrated on, None where that is not known.  inputs: the windows that the build is verified on.
    """
    chosen_on = () if division is None else division.selection or division.calibration
    owners, windows = _windows(request, source, chosen_on) if chosen_on else ([0] * len(inputs), list(inputs))
    some = windows[:HELD_OUT]
    if request.budget.dataset is not None:
        dataset, record = not_seen(
            request.budget.dataset(source.spec), seen, () if division is None else division.selection, log
        )
        first, second = dataset.halves()
        report = _scored(second, source, request.max_pixels) if second.samples else None
        return _told(
            Panels(_scored(first, source, request.max_pixels), report, some, labelled=True, record=record), log
        )
    if not chosen_on:
        log("warning", "no photographs: plans are judged on the windows that the build is verified on")
    others = () if division is None else division.report
    report = _compared(graph, *_windows(request, source, others), source.spec.threshold) if others else None
    return _told(
        Panels(_compared(graph, owners, windows, source.spec.threshold), report, some, labelled=False, record={}), log
    )


def labelled_jury(
    request: BuildRequest, source: Source, graph: OnnxGraph, division: Split | None,
    seen: Sequence[Photograph] | None, *, backend: Backend, config: BuildConfig, log: Log,
) -> Jury:  # fmt: skip
    """Of a precision that is not chosen: the mIoU on the budget's data set, against fp32's on the same device."""
    assert request.budget.dataset is not None
    dataset, _ = not_seen(
        request.budget.dataset(source.spec), seen, () if division is None else division.selection, log
    )
    panel = _scored(dataset, source, request.max_pixels)
    unable = backend.only_builds()
    with emulated(graph) if unable else compiled(graph, backend, replace(config, precision="fp32")) as session:
        before = panel.count(Segmenter.on_host(session, source.spec, request.tiling))
    log("budget", f"mIoU {panel.points(before.sum(0, keepdims=True))[0]:.2f} % in fp32, on {panel.images} image(s)")
    return Jury(panel, before, request.budget.max_drop, fresh=True)


def _told(found: Panels, log: Log) -> Panels:
    unit = "mIoU" if found.labelled else "labels as in fp32"
    rest = "too few to report on others" if found.report is None else f"report on {found.report.images} others"
    log("budget", f"{unit}: plans are chosen on {found.selection.images} image(s), {rest}")
    images = {"selection": found.selection.images, "report": 0 if found.report is None else found.report.images}
    found.record.update(images=images, unit=unit)
    return found


def _windows(
    request: BuildRequest, source: Source, images: Sequence[Photograph]
) -> tuple[list[int], list[Float32]]:  # fmt: skip
    """Windows of each of `images` as the network's inputs (1, 3, h, w), and which image each is from."""
    count = max(HELD_OUT, len(images))
    drawn = draw_from(
        images, request.tiling, count=count, max_pixels=request.max_pixels, wanted=request.wanted(source.spec)
    )  # fmt: skip
    ranks = {each.path: index for index, each in enumerate(drawn.seen)}
    pairs = [(ranks[place.image], window) for place, window in drawn.inputs(source.spec, request.tiling)]
    return [rank for rank, _ in pairs], [window for _, window in pairs]


def _compared(
    graph: OnnxGraph, owners: Sequence[int], windows: Sequence[Float32], threshold: float | None
) -> Panel:  # fmt: skip
    """Labels equal to those of the fp32 `graph`, which is the checkpoint's (see pipeline.exact)."""
    parts = [list(windows[start : start + HELD_OUT]) for start in range(0, len(windows), HELD_OUT)]
    wanted: list[UInt8] = [labels for part in parts for labels in labels_of(run_onnx(graph, part), threshold)]
    images = max(owners) + 1

    def count(segmenter: Segmenter) -> Counts:
        counts = np.zeros((images, 2), np.int64)
        for owner, window, labels in zip(owners, windows, wanted, strict=True):
            logits = segmenter.session.run(np.repeat(window, segmenter.device.batch, axis=0))[:1]
            got = labels_of(logits, threshold)[0]
            counts[owner] += np.count_nonzero(got == labels), labels.size
        return counts

    return Panel(images, count, equal_labels)


def _scored(dataset: Dataset, source: Source, max_pixels: int) -> Panel:
    """mIoU against the labels of a data set."""

    def count(segmenter: Segmenter) -> Counts:
        segment, spec = segmenter.as_built().segment, source.spec
        return areas(lambda image: segment(image).labels, dataset, spec.classes, max_pixels, spec.pixels)

    return Panel(len(dataset.samples), count, miou)
