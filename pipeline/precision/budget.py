"""What `--precision auto` measures on: windows and, where there are labels, a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.contract import Float32, Session
from engines.images.read import MAX_PIXELS
from engines.segmenter import Segmenter
from engines.spec import ModelSpec
from engines.tiling.core import labels_of
from engines.tiling.placement import Tiling
from pipeline.evaluation.evaluate import score
from pipeline.precision.search import Score
from pipeline.request import Budget

HELD_OUT = 4  # windows


def scorer(
    budget: Budget, spec: ModelSpec, tiling: Tiling, windows: Sequence[Float32], reference: Float32,
    max_pixels: int = MAX_PIXELS,
) -> Score:  # fmt: skip
    """mIoU in percent on the budget's data set, or percent of labels equal to the fp32 `reference` on `windows`."""
    if budget.dataset is not None:
        dataset = budget.dataset(spec)

        def miou(session: Session) -> float:
            segmenter = Segmenter.on_host(session, spec, tiling)
            return 100 * score(lambda image: segmenter.segment(image).labels, dataset, spec.classes, max_pixels).miou

        return miou
    wanted = labels_of(reference, spec.threshold)

    def agreement(session: Session) -> float:
        labels = [labels_of(session.run(window), spec.threshold)[0] for window in windows]
        equal = [got == expected for got, expected in zip(labels, wanted, strict=True)]
        return 100 * float(np.mean(equal))

    return agreement
