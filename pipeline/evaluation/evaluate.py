"""`deploy.py evaluate`: score a bundle on a data set, image by image, in the windows that it will run in.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from calib.data.datasets import Dataset
from calib.data.layouts import Sample
from engines.bundle import MANIFEST, Manifest
from engines.contract import UInt8
from engines.errors import GateError
from engines.files import file_sha256
from engines.images.read import MAX_PIXELS, Admit, read_picture
from engines.images.resize import resize_image, resize_labels
from engines.measure.bench import Stats, Timing
from engines.measure.worker import FrameTimes
from engines.segmenter import Segmenter
from engines.spec import COLOUR, Pixels
from engines.stream.ahead import read_ahead
from engines.stream.behind import Behind
from engines.stream.flow import Done, Intake, flow
from engines.tiling.device import PARTS
from engines.views.views import ImageViews
from pipeline.evaluation.metrics import Confusion, Scores

EVALUATE_JSON = "evaluate.json"
SHOWN = (*PARTS, "frame")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one bundle on one data set, with what they were measured with.

    timing: of every image, from its start to its mask, while others are read; one window is run before the first, so
    that what an engine does once is not in it.
    windows: of all images.
    views: how images were run, see `ImageViews`.
    bundle, dataset, versions: descriptions with sha256 digests, as they go into evaluate.json.  dataset says how many
    of its images the bundle was calibrated on, too.
    """

    scores: Scores
    timing: Timing
    windows: int
    views: ImageViews
    bundle: Mapping[str, Any]
    dataset: Mapping[str, Any]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Scores (shares, 0..1) at the top: ``miou``, ``aacc``, ``macc``, ``classes``."""
        rest = {
            "views": self.views.to_json(),
            "bundle": dict(self.bundle),
            "dataset": dict(self.dataset),
            "versions": dict(self.versions),
        }
        timing = {"images": self.timing.frame.count, "windows": self.windows}
        spread = {f"{name}_ms": {"p50": stats.p50, "p95": stats.p95} for name, stats in self._parts()}
        return {**self.scores.to_json(), "timing": {**timing, **spread}, **rest}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {stats.p50:.1f} ({stats.p95:.1f})" for name, stats in self._parts())
        counted = f"{self.windows} window(s) in {self.timing.frame.count} image(s)"
        seen = self.dataset.get("calibrated_on")
        note = f"\n{seen} of the images were calibrated on: not a score on unseen data" if seen else ""
        how = "" if self.views.plain else f"\nimages {self.views}"
        return f"{self.scores.table()}\nms an image, p50 (p95): {parts}; {counted}{how}{note}"

    def _parts(self) -> list[tuple[str, Stats]]:
        return [(name, getattr(self.timing, name)) for name in SHOWN]

    def require(self, miou: float | None) -> None:
        """Raise GateError when the mIoU is below `miou`, 0..1; None asks for nothing."""
        if miou is not None and self.scores.miou < miou:
            raise GateError(
                f"evaluate: got {100 * self.scores.miou:.2f} % mIoU, expected at least {100 * miou:g} % (--fail-under)"
            )


def score(
    segment: Callable[[UInt8], UInt8],
    dataset: Dataset,
    model_classes: tuple[str, ...],
    max_pixels: int = MAX_PIXELS,
    wanted: Pixels = COLOUR,
) -> Scores:
    """Score `segment`, a function from an image (H, W, C) uint8 to labels (H, W) uint8, on every image of `dataset`.

    wanted: what images are read as.

    A label map resizes the image first, brings the labels back to the label file's size (nearest) and translates them.
    Raises DeployError on a missing, unreadable or impossible label, and on an unreadable image: a score over part of
    the set would not be the set's.
    """
    reader, confusion = _Reader(dataset, model_classes, max_pixels, wanted), Confusion(len(dataset.classes))
    for seen in reader.ahead():
        confusion.update(*reader.pair(seen, segment(seen.image)))
    return confusion.scores(dataset.classes)


def areas(
    segment: Callable[[UInt8], UInt8],
    dataset: Dataset,
    model_classes: tuple[str, ...],
    max_pixels: int = MAX_PIXELS,
    wanted: Pixels = COLOUR,
) -> NDArray[np.int64]:
    """(N, 3, K) pixels of each image: those hit, predicted and true of each class.  As `score`, which sums them."""
    reader, found = _Reader(dataset, model_classes, max_pixels, wanted), []
    for seen in reader.ahead():
        confusion = Confusion(len(dataset.classes))
        confusion.update(*reader.pair(seen, segment(seen.image)))
        found.append(confusion.areas)
    return np.stack(found)


@dataclass(frozen=True)
class _Seen:
    """image: (H, W, C) uint8, as the model sees it.  truth: (h, w) uint8, in the data set's classes."""

    image: UInt8
    truth: UInt8


class _Reader:
    """Images and labels of a data set, and predictions in its classes.  Its methods are called in threads."""

    def __init__(self, dataset: Dataset, model_classes: tuple[str, ...], max_pixels: int, wanted: Pixels) -> None:
        dataset.require_labels()
        label_map = dataset.label_map
        self.samples = dataset.samples
        self._dataset, self._max_pixels = dataset, max_pixels
        self._pixels = replace(wanted, upright=not dataset.as_stored)
        self._table = None if label_map is None else label_map.prediction_table(model_classes)
        self._size = None if label_map is None else label_map.image_size

    def read(self, sample: Sample, admit: Admit) -> _Seen:
        image = read_picture(sample.image, self._max_pixels, self._pixels, admit).pixels
        truth = self._dataset.labels(sample, image.shape[:2], self._max_pixels)
        return _Seen(image if self._size is None else resize_image(image, self._size), truth)

    def ahead(self) -> Iterator[_Seen]:
        """All, in order, the next ones read while the caller works."""
        seen = read_ahead(self.samples, self.read)
        return iter(tqdm(seen, total=len(self.samples), unit="image", disable=None, leave=False))

    def pair(self, seen: _Seen, labels: UInt8) -> tuple[UInt8, UInt8]:
        """(truth, prediction) in the data set's classes, of the model's labels."""
        predicted = resize_labels(labels, seen.truth.shape)
        return seen.truth, predicted if self._table is None else np.take(self._table, predicted)


def evaluate(
    segmenter: Segmenter, manifest: Manifest, folder: Path, dataset: Dataset, max_pixels: int = MAX_PIXELS
) -> Evaluation:
    """Score the bundle at `folder`, opened as `segmenter`.  Raises DeployError as `score` does."""
    segmenter.session.run(np.zeros((manifest.batch, *manifest.input_shape[1:]), np.float32))
    reader = _Reader(dataset, manifest.spec.classes, max_pixels, manifest.spec.pixels)
    scores, frames = _scored(segmenter, reader, dataset.classes)
    return Evaluation(
        scores, timing=Timing.of(frames, frames), windows=sum(each.windows for each in frames),
        views=segmenter.views, bundle=_bundle(manifest, folder), versions=_versions(manifest),
        dataset={**dataset.to_json(), "calibrated_on": _calibrated_on(manifest, dataset)},
    )  # fmt: skip


def _scored(segmenter: Segmenter, reader: _Reader, classes: Sequence[str]) -> tuple[Scores, list[FrameTimes]]:
    """Read ahead of the device and counted behind it, by one thread, in order."""
    confusion, frames = Confusion(len(classes)), list[FrameTimes]()

    def count(done: Done[Sample, _Seen]) -> None:
        assert done.read.value is not None
        assert done.mask is not None
        confusion.update(*reader.pair(done.read.value, done.mask.labels))
        done.release()

    intake = Intake(reader.samples, reader.read, lambda seen: seen.image)
    behind = Behind[int, None](count=1, quiet=segmenter.device.name == "host")
    with behind, closing(flow(segmenter, intake, ordered=True)) as outcomes:
        for done in tqdm(outcomes, total=len(reader.samples), unit="image", disable=None, leave=False):
            if done.error is not None:
                raise done.error
            assert done.frame is not None
            frames.append(FrameTimes.of(done.frame.timings, done.frame.seconds))
            behind.put(len(frames), partial(count, done))
            del done
    for _, result in behind.done():
        if result is not None:
            raise result
    return confusion.scores(classes), frames


def _calibrated_on(manifest: Manifest, dataset: Dataset) -> int | None:
    """How many images of `dataset`; None where the bundle does not say."""
    seen = manifest.photographs.get("calibrated_on")
    if not isinstance(seen, Sequence):
        return None
    digests = {str(each.get("sha256")) for each in seen if isinstance(each, Mapping)}
    return len(dataset.samples) - len(dataset.without(digests).samples)


def _bundle(manifest: Manifest, folder: Path) -> dict[str, Any]:
    spec = manifest.spec
    return {
        "path": str(folder),
        "model": f"{spec.architecture} {spec.variant}".strip(),
        "source_sha256": spec.source_sha256,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "sdk": manifest.sdk,
        "device": manifest.device,
        "tiling": manifest.tiling.to_json(),
        "threshold": spec.threshold,
        "files": {**manifest.files, MANIFEST: file_sha256(folder / MANIFEST)},
    }


def _versions(manifest: Manifest) -> dict[str, str]:
    try:
        own = version("edgeseg")
    except PackageNotFoundError:
        own = "not installed, run from its source"
    packages = {name: version(name) for name in ("numpy", "pillow")}
    return {"edgeseg": own, "python": platform.python_version(), **packages, "sdk": manifest.sdk}
