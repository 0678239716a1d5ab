"""One bundle on images of other sizes than theirs: what fixed position embeddings cost, and what none save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from engines.images.resize import resize_image
from engines.measure.worker import Worker
from pipeline.compare.frames import Frames
from pipeline.evaluation.metrics import Confusion


def miou_at(bundle: Path, frames: Frames, factors: Sequence[float], threads: int) -> dict[float, float | None]:
    """mIoU 0..1 by factor: each image is resized, segmented, and its labels are brought to the size of the truth."""
    confusions = {factor: Confusion(len(frames.classes)) for factor in factors}
    with Worker(bundle, threads) as worker:
        for frame in tqdm(
            frames.ahead(), total=len(frames), desc="resolutions", unit="image", disable=None, leave=False
        ):
            if frame.truth is None:
                continue
            height, width = frame.image.shape[:2]
            for factor, confusion in confusions.items():
                size = (max(1, round(factor * height)), max(1, round(factor * width)))
                worker.put(frame.image if size == (height, width) else resize_image(frame.image, size))
                worker.frame()
                confusion.update(frame.truth, frames.predicted(worker.labels(), frame.truth.shape))
    return {factor: confusion.scores(frames.classes).miou for factor, confusion in confusions.items()}
