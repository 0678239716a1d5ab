"""All bundles side by side: each in a process of its own, fed the same frames in turn.

Every frame goes through every engine before the next is read, so nothing is kept of a frame but counts (and small
pictures of the worst ones), and a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engines.contract import UInt8
from engines.errors import DeployError
from engines.measure.bench import Timing
from engines.measure.worker import FrameTimes, Opened, Worker
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.compare.frames import Frames
from pipeline.compare.tally import MapAgreement, Tally
from pipeline.compare.worst import Picture, Worst
from pipeline.evaluation.metrics import Confusion, Scores

# Threads of the engine that ran before may still be spinning when it answers.
SETTLE_S = 0.02


@dataclass(frozen=True)
class Measured:
    """One bundle: what its worker loaded and measured.  scores: None without labels.  worst: the worst images.

    executed: share of the layers' time by the type they really ran in; empty where the SDK cannot tell.
    """

    opened: Opened
    scores: Scores | None
    agreement: MapAgreement
    executed: Mapping[str, float]
    timing: Timing
    windows: int
    frame_size: tuple[int, int]
    peak_bytes: int
    worst: tuple[Picture, ...]


@dataclass(kw_only=True)
class _Clocked:
    """One worker and its times.  split: frames whose parts were timed, where `times` do not tell them."""

    worker: Worker
    times: list[FrameTimes] = field(default_factory=list)
    split: list[FrameTimes] = field(default_factory=list)

    @property
    def timing(self) -> Timing:
        return Timing.of(self.times, self.split or self.times)


@dataclass(kw_only=True)
class _Lane(_Clocked):
    """And what is counted for it."""

    tally: Tally
    worst: Worst
    confusion: Confusion | None


def measure(
    bundles: Mapping[str, Path], frames: Frames, spec: ModelSpec, tiling: Tiling, rounds: int, threads: int
) -> dict[str, Measured | str]:
    """Run every bundle over `frames` for its labels, then `rounds` times for its time.

    The first bundle is the reference.  Returns by name what was measured, or why that failed; an error of the
    reference, or of the data, is raised as DeployError.
    """
    reference, *others = bundles
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        lanes: dict[str, _Lane] = {}
        for name, bundle in bundles.items():
            try:
                worker = stack.enter_context(Worker(bundle, threads))
            except DeployError as error:
                _unless_reference(name, reference, error)
                failed[name] = str(error)
                continue
            confusion = Confusion(len(frames.classes)) if frames.labelled else None
            tally, worst = Tally(len(spec.classes), tiling), Worst(spec.palette)
            lanes[name] = _Lane(worker=worker, tally=tally, worst=worst, confusion=confusion)
        sizes = _accuracy(lanes, reference, frames, failed)
        _timing(lanes, lambda turn: frames[sizes[turn % len(sizes)][0]].image, rounds, failed, reference)
        results: dict[str, Measured | str] = dict(failed)
        for name, lane in lanes.items():
            try:
                results[name] = _measured(lane, sizes[0][1], frames.classes)
            except DeployError as error:
                _unless_reference(name, reference, error)
                results[name] = str(error)
    return {name: results[name] for name in (reference, *others)}


def _measured(lane: _Lane, size: tuple[int, int], classes: tuple[str, ...]) -> Measured:
    worker, times, timing = lane.worker, lane.times, lane.timing
    scores = lane.confusion.scores(classes) if lane.confusion else None
    peak = worker.peak_bytes()  # before `executed`, which loads the engine once more
    return Measured(
        worker.opened, scores=scores, agreement=lane.tally.result(), executed=worker.executed(), timing=timing,
        windows=times[0].windows, frame_size=size, peak_bytes=peak, worst=lane.worst.pictures(),
    )  # fmt: skip


def _accuracy(
    lanes: dict[str, _Lane], reference: str, frames: Frames, failed: dict[str, str]
) -> list[tuple[int, tuple[int, int]]]:
    """Label every frame with every engine and count.  Returns (index, size) of the frames of the commonest size."""
    sizes: list[tuple[int, tuple[int, int]]] = []
    shown = tqdm(frames.ahead(), total=len(frames), desc="accuracy", unit="image", disable=None, leave=False)
    for index, frame in enumerate(shown):
        sizes.append((index, (frame.image.shape[0], frame.image.shape[1])))
        expected = _labels(lanes[reference].worker, frame.image)
        for name in list(lanes):
            lane = lanes[name]
            try:
                labels = expected if name == reference else _labels(lane.worker, frame.image)
            except DeployError as error:
                failed[name] = f"{frame.name}: {error}"
                del lanes[name]
                continue
            share = lane.tally.add(expected, labels)
            if name != reference:
                lane.worst.offer(frame.name, share, frame.image, expected, labels)
            if lane.confusion is not None and frame.truth is not None:
                lane.confusion.update(frame.truth, frames.predicted(labels, frame.truth.shape))
    (commonest, _), *_ = Counter(size for _, size in sizes).most_common(1)
    return [entry for entry in sizes if entry[1] == commonest]


def take_turns(bundles: Mapping[Any, Path], images: Sequence[UInt8], rounds: int, threads: int) -> dict[Any, Timing]:
    """Times of engines of whatever models, by the keys of `bundles`, on the same frames; of those that run to the end.

    images: (H, W, 3) uint8 RGB of one size.
    """
    with ExitStack() as stack:
        lanes: dict[Any, _Clocked] = {}
        for name, bundle in bundles.items():
            with suppress(DeployError):  # as in its model's own comparison, where it ran: then that one's time stands
                lanes[name] = _Clocked(worker=stack.enter_context(Worker(bundle, threads)))
        for lane in lanes.values():  # the first frame of a process is slower
            lane.worker.put(images[0])
            lane.worker.frame()
        _timing(lanes, lambda turn: images[turn % len(images)], rounds, {}, None)
        return {name: lane.timing for name, lane in lanes.items()}


def _timing(
    lanes: dict[Any, Any], image_of: Callable[[int], UInt8], rounds: int, failed: dict[Any, str], reference: Any
) -> None:  # fmt: skip
    """Time every engine on the same frames, in an order that turns by one from round to round.

    One that fails leaves `lanes` for `failed`; the error of `reference` is raised.
    On a GPU frames tell their parts only where they are slowed down for it: in rounds of their own, after the others.
    """

    def attempt(name: Any, do: Callable[[_Clocked], object]) -> object:
        try:
            return do(lanes[name])
        except DeployError as error:
            _unless_reference(name, reference, error)
            failed[name] = str(error)
            del lanes[name]
            return None

    def interleaved(names: list[Any], what: str, take: Callable[[_Clocked, UInt8, int], None]) -> None:
        for turn in tqdm(range(rounds), desc=what, unit="round", disable=None, leave=False):
            image = image_of(turn)
            names = [name for name in names if name in lanes]
            for name in (names[(turn + k) % len(names)] for k in range(len(names))):
                attempt(name, lambda lane: take(lane, image, turn))  # noqa: B023  called at once

    interleaved(list(lanes), "timing", _take)
    on_gpu = [name for name in list(lanes) if attempt(name, lambda lane: lane.worker.device().name != "host")]
    if on_gpu:
        interleaved(on_gpu, "parts", _take_parts)


def _take(lane: _Clocked, image: UInt8, turn: int) -> None:
    lane.worker.put(image)
    time.sleep(SETTLE_S)
    lane.times.append(lane.worker.frame())


def _take_parts(lane: _Clocked, image: UInt8, turn: int) -> None:
    lane.worker.put(image)
    lane.worker.time_parts(True)
    if turn == 0:
        lane.worker.frame()  # its events are made on first use
    time.sleep(SETTLE_S)
    lane.split.append(lane.worker.frame())


def _labels(worker: Worker, image: UInt8) -> UInt8:
    worker.put(image)
    worker.frame()
    return worker.labels()


def _unless_reference(name: Any, reference: Any, error: DeployError) -> None:
    if name == reference:
        raise error
