"""Scores of a label map against the truth, and agreement of one label map with another.

mIoU, per-class IoU, pixel accuracy (aAcc) and mean class accuracy (mAcc) are mmsegmentation's (`IoUMetric`), written
from their definition: pixels whose true label is 255 are dropped, the areas of intersection, prediction and truth are
summed per class over the *whole set*, and only then divided:

    IoU_k = I_k / (P_k + T_k - I_k)      Acc_k = I_k / T_k      aAcc = sum I / sum T      mIoU, mAcc: mean over k

A class that occurs neither in the truth nor in the predictions has 0/0 and is left out of the mean.  A class that is
predicted somewhere but never true has an IoU of 0, which counts, and no accuracy, which does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.errors import DeployError
from engines.spec import IGNORE_LABEL, MAX_CLASSES
from engines.tiling.placement import Tiling

Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassScore:
    """One class.  iou, accuracy: 0..1, None for 0/0.  pixels: how many are truly of this class."""

    name: str
    iou: float | None
    accuracy: float | None
    pixels: int


@dataclass(frozen=True)
class Scores:
    """All values are shares, 0..1.  miou, macc: means over the classes that have a value."""

    miou: float
    aacc: float
    macc: float
    classes: tuple[ClassScore, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "miou": self.miou,
            "aacc": self.aacc,
            "macc": self.macc,
            "classes": [dict(vars(each)) for each in self.classes],
        }

    def table(self) -> str:
        """Percent, one class a line; ``-`` where a class does not occur."""
        total = sum(each.pixels for each in self.classes)
        width = max(5, *(len(each.name) for each in self.classes))
        lines = [f"{'class':{width}}  {'IoU %':>7}  {'Acc %':>7}  {'share %':>7}"]
        for each in self.classes:
            share = 100 * each.pixels / total
            lines.append(f"{each.name:{width}}  {_percent(each.iou)}  {_percent(each.accuracy)}  {share:7.2f}")
        lines.append(f"{'mean':{width}}  {_percent(self.miou)}  {_percent(self.macc)}")
        return "\n".join([*lines, f"pixel accuracy {100 * self.aacc:.2f} %"])


class Confusion:
    """Counts of (true class, predicted class), streamed image by image."""

    def __init__(self, classes: int) -> None:
        if not 1 <= classes <= MAX_CLASSES:
            raise DeployError(f"confusion: got {classes} classes, expected 1 to {MAX_CLASSES}")
        self._pairs = np.zeros((256, 256), np.int64)  # every pair of bytes: no pixel has to be masked
        self.classes = classes

    def update(self, truth: UInt8, predicted: UInt8) -> None:
        """Add one image: (H, W) uint8 each.  truth: 0..K-1, or 255 for ignore.

        predicted: 0..K-1; anything else is *none of the classes*, which is wrong wherever the truth is not 255.
        Raises DeployError, and counts nothing, when the shapes differ or the truth holds another label.
        """
        if truth.shape != predicted.shape or truth.dtype != np.uint8 or predicted.dtype != np.uint8:
            raise DeployError(
                f"confusion: got truth {truth.shape} {truth.dtype} and prediction {predicted.shape} "
                f"{predicted.dtype}, expected uint8 of one shape"
            )
        code = np.left_shift(truth, 8, dtype=np.uint16) | predicted
        pairs = np.bincount(code.ravel(), minlength=1 << 16).reshape(256, 256)
        unknown = np.flatnonzero(pairs[self.classes : IGNORE_LABEL].any(1)) + self.classes
        if unknown.size:
            raise DeployError(
                f"confusion: got true labels {unknown.tolist()}, expected 0..{self.classes - 1} or {IGNORE_LABEL}"
            )
        self._pairs += pairs

    @property
    def matrix(self) -> NDArray[np.int64]:
        """(K, K): [i, j] counts the pixels that are i and were called j.  Ignored pixels are not in it."""
        return self._pairs[: self.classes, : self.classes].copy()

    @property
    def missed(self) -> NDArray[np.int64]:
        """(K,): pixels that are i and were called none of the classes."""
        missed: NDArray[np.int64] = self._pairs[: self.classes, self.classes :].sum(1)
        return missed

    @property
    def areas(self) -> NDArray[np.int64]:
        """(3, K): pixels of each class that were hit, that were predicted, and that are true."""
        matrix = self.matrix
        return np.stack([matrix.diagonal(), matrix.sum(0), matrix.sum(1) + self.missed])

    def scores(self, names: Sequence[str]) -> Scores:
        """The scores of everything so far.  Raises DeployError when no pixel has counted."""
        if len(names) != self.classes:
            raise DeployError(f"confusion: got {len(names)} names, expected {self.classes}")
        hit, predicted, true = self.areas
        if not true.any():
            raise DeployError("scores: got no labelled pixel, expected some; every pixel of the set is to be ignored")
        iou = _ratio(hit, predicted + true - hit)
        accuracy = _ratio(hit, true)
        each = tuple(
            ClassScore(name, _or_none(iou[k]), _or_none(accuracy[k]), int(true[k])) for k, name in enumerate(names)
        )
        return Scores(float(np.nanmean(iou)), float(hit.sum() / true.sum()), float(np.nanmean(accuracy)), each)


@dataclass(frozen=True)
class LabelAgreement:
    """Pixels with equal labels, of how many; sums over images with ``+``."""

    equal: int = 0
    total: int = 0

    @property
    def share(self) -> float | None:
        """0..1, or None where there was no pixel to compare."""
        return self.equal / self.total if self.total else None

    def __add__(self, other: LabelAgreement) -> LabelAgreement:
        return LabelAgreement(self.equal + other.equal, self.total + other.total)


def label_agreement(a: UInt8, b: UInt8, where: Bool | None = None) -> LabelAgreement:
    """Compare label maps (H, W), in the pixels `where` (H, W) is True if given.  Raises DeployError on other shapes."""
    if a.shape != b.shape or (where is not None and where.shape != a.shape):
        mask = "" if where is None else f", mask {where.shape}"
        raise DeployError(f"agreement: got labels {a.shape} and {b.shape}{mask}, expected one shape")
    equal = a == b
    if where is None:
        return LabelAgreement(int(np.count_nonzero(equal)), equal.size)
    return LabelAgreement(int(np.count_nonzero(equal & where)), int(np.count_nonzero(where)))


def boundary_band(labels: UInt8, width: int) -> Bool:
    """(H, W): pixels with another label within `width` pixels (chessboard distance), 0 for none.

    At width 1, the pixels on both sides of every class boundary, corners included.
    """
    if width < 0:
        raise DeployError(f"boundary band: got width {width}, expected 0 or more")
    low = high = labels  # the two differ where a neighbour differs
    for axis in (0, 1):
        low, high = _running(np.minimum, low, width, axis), _running(np.maximum, high, width, axis)
    band: Bool = low != high
    return band


def seam_band(tiling: Tiling, height: int, width: int, px: int) -> Bool:
    """(height, width): the `px` pixels on either side of every edge of a window that lies inside the image.

    That is where an overlap begins or ends, so where a mistake of placing or blending windows shows first.
    """
    if px < 0:
        raise DeployError(f"seam band: got {px} pixels, expected 0 or more")
    tops, lefts = tiling.placements(height, width)
    rows = _near_edges(tops, tiling.labelled[0], height, px)
    columns = _near_edges(lefts, tiling.labelled[1], width, px)
    band: Bool = rows[:, None] | columns[None, :]
    return band


def _near_edges(starts: Sequence[int], window: int, length: int, px: int) -> Bool:
    near = np.zeros(length, np.bool_)
    for edge in {edge for start in starts for edge in (start, start + window)}:
        if 0 < edge < length:
            near[max(0, edge - px) : edge + px] = True
    return near


def _running(function: np.ufunc, values: UInt8, width: int, axis: int) -> UInt8:
    """`function` over the 2 * width + 1 neighbours along `axis`, beyond the edges nothing.  O(log width) passes."""
    out = np.moveaxis(values, axis, 0).copy()
    done = 0
    while done < min(width, len(out) - 1):
        # `out` covers +-done and is widened to +-(done + step); step <= done + 1 leaves no gap.
        step = min(done + 1, width - done, len(out) - 1)
        wider = out.copy()
        function(wider[step:], out[:-step], out=wider[step:])
        function(wider[:-step], out[step:], out=wider[:-step])
        out, done = wider, done + step
    return np.moveaxis(out, 0, axis)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return ratio


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{100 * value:7.2f}"
