"""How much of the reference's label maps a candidate keeps: everywhere, by class, along class borders, along seams.

Borders are where a small error in the logits can change a label at all, and seams are where tiling itself can leave a
trace: an agreement of 99.8 % everywhere may hide 90 % in the places that a user looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.tiling.placement import Tiling
from pipeline.evaluation.metrics import Confusion, LabelAgreement, boundary_band, label_agreement, seam_band

EDGE_PX = 3  # pixels within which another label of the reference lies
SEAM_PX = 8  # pixels on either side of a window's edge inside the image


@dataclass(frozen=True)
class MapAgreement:
    """Shares of equal labels, 0..1, over every image.

    edges, seams: None where no pixel lies in such a band (a set of single windows has no seams).
    by_class: intersection over union of a class with the reference's mask, None where neither has it.
    """

    labels: float
    edges: float | None
    seams: float | None
    by_class: tuple[float | None, ...]


class Tally:
    """Counts over images, one at a time; nothing of an image is kept."""

    def __init__(self, classes: int, tiling: Tiling) -> None:
        self._confusion = Confusion(classes)
        self._tiling = tiling
        self._edges = self._seams = LabelAgreement()

    def add(self, reference: UInt8, candidate: UInt8) -> float:
        """Count one image: label maps (H, W).  Returns the image's own share of equal labels, 0..1."""
        self._confusion.update(reference, candidate)
        self._edges += label_agreement(reference, candidate, boundary_band(reference, EDGE_PX))
        self._seams += label_agreement(reference, candidate, self._seam_band(reference))
        return float((reference == candidate).mean())

    def _seam_band(self, labels: UInt8) -> NDArray[np.bool_]:
        height, width = labels.shape
        if self._tiling.resize != "none":  # windows' edges lie elsewhere
            return np.zeros(labels.shape, np.bool_)
        return seam_band(self._tiling, height, width, SEAM_PX)

    def result(self) -> MapAgreement:
        matrix = self._confusion.matrix
        both = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - both
        by_class = tuple(float(b / u) if u else None for b, u in zip(both, union, strict=True))
        return MapAgreement(float(both.sum() / matrix.sum()), self._edges.share, self._seams.share, by_class)
