"""What several views of each image gain, and what they take: the engines of a comparison once more, with them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from engines.contract import Log
from engines.errors import DeployError
from engines.measure.bench import Timing
from engines.measure.worker import FrameTimes, Worker
from engines.views.views import ImageViews
from pipeline.compare.frames import Frames
from pipeline.compare.measure import SETTLE_S
from pipeline.compare.rows import Row
from pipeline.evaluation.metrics import Confusion


def augmented(
    rows: tuple[Row, ...], folder: Path, frames: Frames, views: ImageViews, threads: int, log: Log
) -> tuple[Row, ...]:  # fmt: skip
    """A row beside each candidate that was measured: its engine with `views` of every frame.  They are not judged.

    Timed are the frames of the commonest size while they are scored.  speedup: against what those of `rows` are.
    """
    found = []
    for row in rows:
        if row.judged and row.measured:
            found.append(_augmented(row, folder / row.folder, frames, views, threads))
            log("views", gain(row, found[-1]) or "; ".join(found[-1].reasons))
    return tuple(found)


def gain(plain: Row, row: Row) -> str:
    """In words; "" where one of them was not measured."""
    if plain.timing is None or row.timing is None or plain.miou is None or row.miou is None:
        return ""
    before, after = plain.timing.frame.p50, row.timing.frame.p50
    windows = f"{row.windows} windows a frame, not {plain.windows}"
    return (
        f"{row.name}: {100 * (row.miou - plain.miou):+.2f} points of mIoU for {after - before:.0f} ms a frame more, "
        f"{after / before:.1f} times as long ({windows})"
    )


def gains(rows: tuple[Row, ...]) -> list[str]:
    """Of every row with views, against the same engine without."""
    plain = {row.folder: row for row in rows if row.views is None}
    said = [gain(plain[row.folder], row) for row in rows if row.views is not None and row.folder in plain]
    return [text for text in said if text]


def _augmented(row: Row, bundle: Path, frames: Frames, views: ImageViews, threads: int) -> Row:
    blank = replace(
        row, views=views.to_json(), agreement=None, timing=None, miou=None, class_iou=None, pixel_accuracy=None,
        speedup=None, gpu_floor_ms={}, gpu_floor_note="", verification=(), log=(), passed=False, reasons=(),
    )  # fmt: skip
    confusion = Confusion(len(frames.classes))
    times: list[tuple[tuple[int, int], FrameTimes]] = []
    try:
        with Worker(bundle, threads, views=views) as worker:
            for index in tqdm(range(len(frames)), desc=row.name, unit="image", disable=None, leave=False):
                frame = frames[index]
                worker.put(frame.image)
                time.sleep(SETTLE_S)
                times.append(((frame.image.shape[0], frame.image.shape[1]), worker.frame()))
                assert frame.truth is not None
                confusion.update(frame.truth, frames.predicted(worker.labels(), frame.truth.shape))
            peak = worker.peak_bytes()
    except DeployError as error:
        return replace(blank, reasons=(str(error),))
    ((size, _),) = Counter(size for size, _ in times).most_common(1)
    taken = [each for of, each in times if of == size]
    timing, scores = Timing.of(taken, taken), confusion.scores(frames.classes)
    slow = None if row.speedup is None or row.timing is None else row.speedup * row.timing.frame.p50
    return replace(
        blank, miou=scores.miou, pixel_accuracy=scores.aacc, class_iou=tuple(each.iou for each in scores.classes),
        timing=timing, windows=taken[0].windows, frame_size=size, peak_bytes=peak, passed=True,
        speedup=None if slow is None else slow / timing.frame.p50,
    )  # fmt: skip
