"""What windows cost near their seams: ways to blend, stride by stride, against the network on the whole image.

    python -m benchmarks.seams MODEL DATASET [--tile 512] [--count 6] [--zoom 1] [--ignore N] [--json FILE]

MODEL as build-engine takes it; DATASET is images/ and, where there are labels, labels/ beside it.  Images are enlarged
by --zoom and cut to multiples of 32.  An engine is built at the window's size and one at the image's (fp32, OpenVINO).
The band is all pixels within a sixteenth of the window of a window's border inside of the image.

uniform    the mean of all windows, mmsegmentation's
gaussian, hann    weights that fall towards the window's border, as --blend has them
trimmed    uniform, but the outer sixteenth of a window has no vote, except at the image's own border
nearest    each pixel from the window in whose middle it lies most: overlaps are cut in half, borders discarded
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from engines.backends import get_backend
from engines.contract import BuildConfig, Session
from engines.images.read import read_image
from engines.machine.sysfs import cpu_name
from engines.spec import ModelSpec
from engines.tiling import core
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.proto import stored
from pipeline.precision.calibrate import graph_of

SCHEMES = ("uniform", "gaussian", "hann", "trimmed", "nearest")
PARTS = (0.5, 0.75, 0.875)  # of the window: 512, 768 and 896 of 1024
EDGE = 16  # of a window's parts, the outer one
FAINT = 1e-6  # the weight of what has no vote, where nothing else has one

Mask = NDArray[np.uint8]


@dataclass
class Tally:
    """Pixels in the band and elsewhere, and how many of them agree with the whole image.  confusion: against labels."""

    band: list[int] = field(default_factory=lambda: [0, 0])
    rest: list[int] = field(default_factory=lambda: [0, 0])
    confusion: NDArray[np.int64] | None = None

    def add(self, labels: Mask, whole: Mask, band: NDArray[np.bool_], truth: Mask | None, classes: int) -> None:
        equal = labels == whole
        for held, where in ((self.band, band), (self.rest, ~band)):
            held[0] += int(where.sum())
            held[1] += int((equal & where).sum())
        if truth is not None:
            counted = truth < classes
            pairs = np.bincount(truth[counted].astype(np.int64) * classes + labels[counted], minlength=classes**2)
            found = pairs.reshape(classes, classes)
            self.confusion = found if self.confusion is None else self.confusion + found

    def row(self) -> dict[str, float | None]:
        shares = {name: held[1] / max(1, held[0]) for name, held in (("band", self.band), ("rest", self.rest))}
        return {**shares, "miou": None if self.confusion is None else _miou(self.confusion)}


def _miou(confusion: NDArray[np.int64]) -> float:
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float((confusion.diagonal()[union > 0] / union[union > 0]).mean())


@contextmanager
def engine(model: str, size: tuple[int, int]) -> Iterator[tuple[Session, ModelSpec]]:
    """`model` compiled for windows of `size`, fp32."""
    backend, config = get_backend("openvino"), BuildConfig("fp32")
    source = load_source(model, size, SourceOptions())
    with stored(graph_of(source).model) as path:
        blob = backend.build(Path(path), config)
    with backend.load(blob, config) as session:
        yield session, source.spec


def logits_of(
    session: Session, spec: ModelSpec, image: Mask, top: int, left: int, size: tuple[int, int]
) -> torch.Tensor:
    """(K, h, w) of one window, resized to it."""
    window = core.gather(image, top, left, size, spec.mean, spec.std, order=spec.order)
    out = torch.from_numpy(session.run(window[None]).copy())
    return F.interpolate(out, size=size, mode="bilinear", align_corners=False)[0]


def weights(scheme: str, places: list[int], index: int, window: int) -> NDArray[np.float32]:
    """Of one axis: of the window at places[index], in (window,) pixels."""
    if scheme in ("gaussian", "hann"):
        found = core.blend_weights(scheme, window, window)
        assert found is not None
        return found[0]
    votes = np.ones(window, np.float32)
    at, last = np.arange(window) + places[index], len(places) - 1
    if scheme == "trimmed":
        edge = window // EDGE
        votes[:edge] = FAINT if index else 1
        votes[window - edge :] = FAINT if index < last else 1
    if scheme == "nearest":
        votes[at < ((places[index] + places[index - 1] + window) // 2 if index else 0)] = 0
        votes[at >= ((places[index] + places[index + 1] + window) // 2 if index < last else at[-1] + 1)] = 0
    return votes


def band_of(size: tuple[int, int], tops: list[int], lefts: list[int], window: int) -> NDArray[np.bool_]:
    """(H, W), True near a border of a window inside of the image."""
    near = []
    for length, places in zip(size, (tops, lefts), strict=True):
        lines = [p for place in places for p in (place, place + window) if 0 < p < length]
        at = np.arange(length)
        near.append(np.any([(at >= p - window // EDGE) & (at < p + window // EDGE) for p in lines] or [at < 0], axis=0))
    return near[0][:, None] | near[1][None]


def pictures(folder: Path, count: int, zoom: float) -> Iterator[tuple[Mask, Mask | None]]:
    """Image (H, W, 3) and labels (H, W) or None, spread evenly over the set."""
    paths = sorted((folder / "images").iterdir())
    for index in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int):
        image = Image.fromarray(read_image(paths[index]))
        size = (round(image.width * zoom), round(image.height * zoom))
        cut = (slice(size[1] // 32 * 32), slice(size[0] // 32 * 32))
        labelled = folder / "labels" / f"{paths[index].stem}.png"
        truth = None
        if labelled.exists():
            truth = np.asarray(Image.open(labelled).resize(size, Image.Resampling.NEAREST))[cut]
        yield np.ascontiguousarray(np.asarray(image.resize(size, Image.Resampling.BILINEAR))[cut]), truth


def study(args: argparse.Namespace) -> dict[tuple[str, str], Tally]:
    window, held = args.tile, list(pictures(args.dataset, args.count, args.zoom))
    size = held[0][0].shape[:2]
    found: dict[tuple[str, str], Tally] = {}
    if any(image.shape[:2] != size for image, _ in held):
        raise SystemExit("images of several sizes: the whole-image engine is built once; give images of one size")
    with engine(args.model, size) as (session, spec):
        wholes = [logits_of(session, spec, image, 0, 0, size).argmax(0).numpy().astype(np.uint8) for image, _ in held]
    classes = len(spec.classes)
    with engine(args.model, (window, window)) as (session, spec):
        for (image, truth), whole in zip(held, wholes, strict=True):
            if args.ignore is not None and truth is not None:
                truth = np.where(truth == args.ignore, 255, truth).astype(np.uint8)
            nothing = np.zeros(size, bool)
            found.setdefault(("whole image", ""), Tally()).add(whole, whole, nothing, truth, classes)
            for part in PARTS:
                stride = int(window * part)
                tops, lefts = Tiling(window, window, stride, stride).placements(*size)
                band = band_of(size, tops, lefts, window)
                totals = {scheme: torch.zeros(classes, *size) for scheme in SCHEMES}
                for row, top in enumerate(tops):
                    for column, left in enumerate(lefts):
                        logits = logits_of(session, spec, image, top, left, (window, window))
                        place = (slice(None), slice(top, top + window), slice(left, left + window))
                        for scheme, total in totals.items():
                            vote = np.outer(weights(scheme, tops, row, window), weights(scheme, lefts, column, window))
                            total[place] += logits * torch.from_numpy(vote)
                for scheme, total in totals.items():
                    labels = total.argmax(0).numpy().astype(np.uint8)
                    found.setdefault((str(stride), scheme), Tally()).add(labels, whole, band, truth, classes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--zoom", type=float, default=1.0)
    parser.add_argument("--ignore", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = study(args)
    print(f"{date.today()}, {cpu_name()}, {args.model}, {args.count} image(s), window {args.tile}")
    print(f"{'stride':>12} {'blend':10}{'band %':>9}{'rest %':>9}{'all %':>9}{'mIoU %':>9}")
    rows = []
    for (stride, scheme), tally in found.items():
        row = {"stride": stride, "blend": scheme, **tally.row()}
        row["all"] = (tally.band[1] + tally.rest[1]) / (tally.band[0] + tally.rest[0])
        rows.append(row)
        scored = "" if row["miou"] is None else f"{100 * row['miou']:9.2f}"
        print(
            f"{stride:>12} {scheme:10}{100 * row['band']:9.3f}{100 * row['rest']:9.3f}{100 * row['all']:9.3f}{scored}"
        )
    if args.json:
        args.json.write_text(json.dumps({"date": str(date.today()), "model": args.model, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
