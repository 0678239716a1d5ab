"""`deploy.py evaluate`: score a bundle on a data set, image by image, in the windows that it will run in.

Needs neither torch nor onnx.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from calib.data.datasets import Dataset
from engines.bundle import MANIFEST, Manifest
from engines.contract import UInt8
from engines.errors import GateError
from engines.files import file_sha256
from engines.images.read import MAX_PIXELS, read_image
from engines.images.resize import resize_image, resize_labels
from engines.measure.bench import Stats, Timing
from engines.measure.worker import FrameTimes
from engines.segmenter import Segmenter
from engines.spec import COLOUR, Pixels
from engines.tiling.device import PARTS
from engines.views.views import ImageViews
from pipeline.evaluation.metrics import Confusion, Scores

EVALUATE_JSON = "evaluate.json"
SHOWN = (*PARTS, "frame")


@dataclass(frozen=True)
class Evaluation:
    """Scores of one bundle on one data set, with what they were measured with.

    timing: of every image; one window is run before the first, so that what an engine does once is not in it.
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
    confusion = Confusion(len(dataset.classes))
    for truth, predicted in _pairs(segment, dataset, model_classes, max_pixels, wanted):
        confusion.update(truth, predicted)
    return confusion.scores(dataset.classes)


def areas(
    segment: Callable[[UInt8], UInt8],
    dataset: Dataset,
    model_classes: tuple[str, ...],
    max_pixels: int = MAX_PIXELS,
    wanted: Pixels = COLOUR,
) -> NDArray[np.int64]:
    """(N, 3, K) pixels of each image: those hit, predicted and true of each class.  As `score`, which sums them."""
    found = []
    for truth, predicted in _pairs(segment, dataset, model_classes, max_pixels, wanted):
        confusion = Confusion(len(dataset.classes))
        confusion.update(truth, predicted)
        found.append(confusion.areas)
    return np.stack(found)


def _pairs(
    segment: Callable[[UInt8], UInt8],
    dataset: Dataset,
    model_classes: tuple[str, ...],
    max_pixels: int,
    wanted: Pixels,
) -> Iterator[tuple[UInt8, UInt8]]:
    """(truth, prediction) of every image, in the data set's classes."""
    dataset.require_labels()
    label_map = dataset.label_map
    table = None if label_map is None else label_map.prediction_table(model_classes)
    size = None if label_map is None else label_map.image_size
    for sample in tqdm(dataset.samples, unit="image", disable=None, leave=False):
        image = read_image(sample.image, max_pixels, replace(wanted, upright=not dataset.as_stored))
        truth = dataset.labels(sample, image.shape[:2], max_pixels)
        predicted = resize_labels(segment(image if size is None else resize_image(image, size)), truth.shape)
        yield truth, predicted if table is None else np.take(table, predicted)


def evaluate(
    segmenter: Segmenter, manifest: Manifest, folder: Path, dataset: Dataset, max_pixels: int = MAX_PIXELS
) -> Evaluation:
    """Score the bundle at `folder`, opened as `segmenter`.  Raises DeployError as `score` does."""
    frames: list[FrameTimes] = []
    segmenter.session.run(np.zeros((manifest.batch, *manifest.input_shape[1:]), np.float32))

    def timed(image: UInt8) -> UInt8:
        begin = time.perf_counter()
        running = segmenter.start(image)
        labels = running.mask().labels
        frames.append(FrameTimes.of(running.timings, time.perf_counter() - begin))
        return labels

    scores = score(timed, dataset, manifest.spec.classes, max_pixels, manifest.spec.pixels)
    return Evaluation(
        scores, timing=Timing.of(frames, frames), windows=sum(each.windows for each in frames),
        views=segmenter.views, bundle=_bundle(manifest, folder), versions=_versions(manifest),
        dataset={**dataset.to_json(), "calibrated_on": _calibrated_on(manifest, dataset)},
    )  # fmt: skip


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
