"""Videos through an engine: decoding, engine and encoding side by side, in memory that does not grow with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engines.errors import DeployError, GpuLostError
from engines.guard.stop import asked_to_stop
from engines.images.bands import Decoded
from engines.segmenter import Segmenter
from engines.stream.flow import Intake, flow
from engines.tiling.device import Confidence, Mask
from engines.video.feed import Excerpt, Feed
from engines.video.frames import VideoFrame, VideoReader
from engines.video.open import open_video
from engines.video.recording import Recording
from engines.video.report import VideoOptions, VideoReport
from engines.video.turns import Turns

Told = Callable[[str, VideoReport | DeployError], None]


def labelled(segmenter: Segmenter, feed: Feed, confidence: bool = False) -> Iterator[tuple[VideoFrame, Mask]]:
    """Every frame of a feed with its labels, in order, as they are there.  Raises DeployError."""
    for _, frame, mask in labelled_together(segmenter, [feed], confidence):
        yield frame, mask
    if feed.error is not None:
        raise feed.error


def labelled_together(
    segmenter: Segmenter, feeds: Sequence[Feed], confidence: bool = False
) -> Iterator[tuple[Feed, VideoFrame, Mask]]:
    """Frames of several feeds, each in its turn.  One that ends does not end the others; `Feed.error` says why it did.

    Raises DeployError where a frame cannot be labelled.
    """
    with closing(flow(segmenter, _intake(Turns(feeds)), ordered=True, confidence=confidence)) as outcomes:
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
            assert outcome.mask is not None
            yield *outcome.job, outcome.mask
            outcome.release()
            del outcome  # holds a frame, while the next is awaited


def run_video(segmenter: Segmenter, source: str, target: Path, options: VideoOptions) -> VideoReport:
    """One source; see `run_together`.  Raises the DeployError that it ends with."""
    found: dict[str, VideoReport | DeployError] = {}
    run_together(segmenter, {source: target}, options, found.__setitem__)
    if isinstance(outcome := found[source], DeployError):
        raise outcome
    return outcome


def run_together(segmenter: Segmenter, targets: Mapping[str, Path], options: VideoOptions, tell: Told) -> None:
    """Write the labels of each source to its target, NAME.labels.mkv, and what else the options ask for beside it.

    All are opened, and read, at once, each by a thread of its own; their frames take turns on the device.
    tell: called for each as it ends, which holds up no other: one that breaks off, a GPU that is lost and Ctrl-C leave
    whole files of the frames until then, and the report says so.  It is a DeployError where there is no frame, or a
    file cannot be written; nothing is then left.  So it is with a lost GPU, and with Ctrl-C, of a source that waits,
    where `skip_existing` would have the next run take them for whole.
    Raises KeyboardInterrupt for Ctrl-C where none has a report, and for another one, which leaves nothing.
    """
    wanted = segmenter.spec.pixels.but(options.bands, options.scale)
    cut, recordings = Excerpt(options.every, options.seconds), dict[Feed, Recording]()
    with asked_to_stop() as stop, ExitStack() as stack:
        bar = stack.enter_context(tqdm(unit="frame", disable=None, leave=False))

        def settle() -> None:
            """End those that are over; after Ctrl-C all are, and are ended below."""
            for each in recordings.values():
                if each.outcome is None and each.over and not stop.asked:
                    tell(each.source, each.end())
            _show(bar, recordings.values(), options)

        def framed() -> None:
            settle()
            bar.update()

        def dial(source: str) -> AbstractContextManager[VideoReader]:
            return open_video(source, wanted, options.max_pixels, options.reconnect, _say)

        certainty: Confidence = "bytes" if options.confidence else False
        feeds = [Feed(partial(dial, source), cut, stop, among=len(targets)) for source in targets]
        turns = Turns(feeds, lambda feed: recordings[feed].free, settle)
        for feed, (source, target) in zip(feeds, targets.items(), strict=True):
            recording = Recording(segmenter, source, target, feed=feed, options=options, stop=stop, heard=turns.wake)
            recordings[feed] = stack.enter_context(recording)
        stack.callback(turns.leave)
        lost = _run(segmenter, turns, recordings, certainty, framed)
        ended = {each: each.end(lost) for each in recordings.values() if each.outcome is None}
        if stop.asked and not any(isinstance(each.outcome, VideoReport) for each in recordings.values()):
            raise KeyboardInterrupt
    for each, outcome in ended.items():
        tell(each.source, outcome)


def _run(
    segmenter: Segmenter, turns: Turns, recordings: Mapping[Feed, Recording], confidence: Confidence,
    after: Callable[[], None],
) -> GpuLostError | None:  # fmt: skip
    """Every frame to its recording, until all are over or the GPU is lost.  after: called after each."""
    segmenter.device.on_window = None
    with closing(flow(segmenter, _intake(turns), ordered=True, confidence=confidence)) as outcomes:
        for outcome in outcomes:
            recordings[outcome.job[0]].put(outcome)
            outcome.release()
            if isinstance(outcome.error, GpuLostError):
                return outcome.error
            del outcome  # holds a frame, while the next is awaited
            after()
    return None


def _intake(turns: Turns) -> Intake[tuple[Feed, VideoFrame], Decoded]:
    return Intake(
        turns, lambda turn, admit: turn[1].picture, lambda picture: picture.pixels, held=lambda turn: True,
        ready=lambda: turns.ready,
    )  # fmt: skip


def _show(bar: Any, recordings: Collection[Recording], options: VideoOptions) -> None:
    """Of one its length, where it has one; of several how many there are."""
    readers = [each.feed.reader for each in recordings if each.outcome is None and each.feed.reader]
    if len(recordings) > 1:
        bar.set_postfix_str(f"{len(readers)} of {len(recordings)} sources", refresh=False)
    elif readers and options.seconds is None and not readers[0].info.live and readers[0].info.frames:
        bar.total = -(-readers[0].info.frames // options.every)


def _say(text: str) -> None:
    tqdm.write(f"{'video':12}{text}", file=sys.stderr)
