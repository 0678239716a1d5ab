"""One video through an engine: decoding, engine and encoding side by side, in memory that does not grow with it."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from engines.errors import DeployError, GpuLostError, without_secrets
from engines.guard.stop import Stop, asked_to_stop
from engines.images.bands import Decoded
from engines.images.read import MAX_PIXELS
from engines.images.write import class_shares
from engines.segmenter import Segmenter
from engines.stream.flow import Done, Intake, flow
from engines.tiling.device import PARTS, Confidence, Mask
from engines.video.av_write import Look
from engines.video.feed import Excerpt, Feed
from engines.video.frames import VideoFrame, VideoReader
from engines.video.open import open_video
from engines.video.redial import Redialled
from engines.video.tracks import Tracks

RECONNECT = 300.0  # seconds: a camera that starts anew, or a switch, is back by then
_LAST = 10_000  # frames whose times are kept: a camera runs for days
_Outcome = Done[VideoFrame, Decoded]


@dataclass(frozen=True)
class VideoOptions:
    """every: label one frame of so many.  seconds: that are read from the first frame on.  keep_nodata: label what
    alpha hides, which else is 255.  bands, scale: in place of what the bundle says, see `engines.spec.Pixels`.
    reconnect: seconds that a camera or stream is dialled again for when it breaks off.
    skip_existing: what is there counts as done, so that of a file nothing is left that is not labelled to its end.
    """

    overlay: bool = False
    confidence: bool = False
    keep_nodata: bool = False
    max_pixels: int = MAX_PIXELS
    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None
    skip_existing: bool = False
    every: int = 1
    seconds: float | None = None
    reconnect: float = RECONNECT


@dataclass
class VideoReport:
    """Of one video: what was written, and how fast.

    frames: that were labelled.  dropped: of a live source, that were passed over for newer ones.
    seconds: from opening to the last byte.  classes: share of all pixels.  encoders: by file.
    median_ms: of a frame, by part of the engine's work; frames overlap with decoding and encoding.
    latency_ms: of a live source, from a frame's arrival until its labels are there, p50 and p95.
    reconnects: times that a live source broke off and came back.  away_seconds: without it, in all.
    stopped: by Ctrl-C.  broken: why it ended early, or "".  lost: whether the GPU was.
    """

    input: str
    mask: str
    width: int
    height: int
    decoder: str
    live: bool
    frames: int = 0
    windows: int = 0
    dropped: int = 0
    seconds: float = 0.0
    classes: dict[str, float] = field(default_factory=dict)
    encoders: dict[str, str] = field(default_factory=dict)
    median_ms: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    reconnects: int = 0
    away_seconds: float = 0.0
    stopped: bool = False
    broken: str = ""
    lost: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """A live source has no end of its own: Ctrl-C is it, and nothing is missing then but for want of a frame."""
        return not self.stopped or (self.live and self.frames > 0)

    def __str__(self) -> str:
        rate = self.frames / self.seconds if self.seconds else 0.0
        parts = [f"{self.input}: {self.frames} frame(s) of {self.width}x{self.height}, {rate:.1f} a second"]
        if self.median_ms:
            parts.append("median " + ", ".join(f"{part} {taken:.0f}" for part, taken in self.median_ms.items()) + " ms")
        if self.live:
            parts.append(f"{self.dropped} dropped for newer ones")
        if self.away_seconds:
            parts.append(f"lost for {self.away_seconds:.1f} s in all, back {self.reconnects} time(s)")
        if self.latency_ms:
            parts.append("labels after " + ", ".join(f"{k} {ms:.0f}" for k, ms in self.latency_ms.items()) + " ms")
        parts += [f"{Path(path).name} by {encoder}" for path, encoder in self.encoders.items()]
        if self.stopped:
            parts.append("stopped; its files are complete until there" if self.frames else "stopped before a frame")
        return "; ".join(parts)


def labelled(segmenter: Segmenter, feed: Feed, confidence: bool = False) -> Iterator[tuple[VideoFrame, Mask]]:
    """Every frame of a feed with its labels, in order, as they are there.  Raises DeployError."""
    with closing(_outcomes(segmenter, feed, confidence)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, DeployError):
                raise outcome
            assert outcome.mask is not None
            yield outcome.job, outcome.mask


def run_video(segmenter: Segmenter, source: str, target: Path, options: VideoOptions) -> VideoReport:
    """Write the labels of a video to `target`, NAME.labels.mkv, and what else the options ask for beside it.

    One that breaks off, a GPU that is lost and Ctrl-C leave whole files of the frames until then, and the report says
    so.  Raises DeployError where there is no frame, or a file cannot be written; nothing is then left.  So it is with a
    lost GPU, and with Ctrl-C, a KeyboardInterrupt, where `skip_existing` would have the next run take them for whole.
    """
    begin = time.perf_counter()
    with asked_to_stop() as stop, ExitStack() as stack:
        wanted = segmenter.spec.pixels.but(options.bands, options.scale)
        try:
            reader = stack.enter_context(open_video(source, wanted, options.max_pixels, options.reconnect, _say))
        except DeployError:
            if stop.asked:  # which FFmpeg took for an error of the source
                raise KeyboardInterrupt from None
            raise
        info = reader.info
        report = VideoReport(
            without_secrets(source), str(target), width=info.width, height=info.height, decoder=info.decoder,
            live=info.live,
        )  # fmt: skip
        _run(segmenter, reader, report, options, stop)
    report.seconds = round(time.perf_counter() - begin, 3)
    return report


def _run(segmenter: Segmenter, reader: VideoReader, report: VideoReport, options: VideoOptions, stop: Stop) -> None:
    spec, device, info = segmenter.spec, segmenter.device, reader.info
    failed: DeployError | None = None
    times = _Times()
    kept = replace(info, rate=info.rate and info.rate / options.every)
    tracks = Tracks(
        Path(report.mask), kept, Look(spec.classes, spec.palette),
        with_overlay=options.overlay, with_confidence=options.confidence, quiet=device.name == "host",
    )  # fmt: skip
    feed = Feed(reader, Excerpt(options.every, options.seconds), stop)
    with tracks, feed, _progress(report, info.frames, options) as bar:
        device.on_window = None
        with closing(_outcomes(segmenter, feed, "bytes" if options.confidence else False)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, DeployError):
                    failed = outcome
                    break
                assert outcome.mask is not None
                times.add(outcome)
                tracks.put(outcome.job, outcome.mask, options.keep_nodata)
                bar.update()
                del outcome  # holds a frame, while the next is awaited
        if options.skip_existing and not info.live:
            if isinstance(failed, GpuLostError):
                raise failed
            if stop.asked:
                raise KeyboardInterrupt
        tracks.finish()
    report.notes = [*reader.notes, *(track.note for track in tracks.tracks.values() if track.note)]
    report.dropped, report.stopped = feed.dropped, stop.asked
    if isinstance(reader, Redialled):
        report.reconnects, report.away_seconds = reader.reconnects, round(reader.away, 3)
    if not tracks.frames and not stop.asked:
        raise failed or DeployError(f"video {report.input}: got no frame that can be decoded, expected some")
    if failed is not None:
        report.broken = f"{failed}; the {tracks.frames} frame(s) until then are labelled"
        report.lost = isinstance(failed, GpuLostError)
    _complete(report, tracks, times, spec.classes)


def _outcomes(
    segmenter: Segmenter, feed: Feed, confidence: Confidence
) -> Generator[_Outcome | DeployError, None, None]:
    """What becomes of each frame; an error is the last one."""
    source = Intake(
        feed, lambda frame, admit: frame.picture, lambda picture: picture.pixels, held=lambda frame: True,
        ready=lambda: feed.ready,
    )  # fmt: skip
    try:
        with closing(flow(segmenter, source, ordered=True, confidence=confidence)) as outcomes:
            for outcome in outcomes:
                if outcome.error is not None:
                    yield outcome.error
                    return
                yield outcome
                outcome.release()
                del outcome
    except DeployError as error:
        yield error


class _Times:
    """Milliseconds of the last `_LAST` frames: by part, and from a frame's arrival to its labels."""

    def __init__(self) -> None:
        self.parts: dict[str, deque[float]] = {part: deque(maxlen=_LAST) for part in PARTS}
        self.latency: deque[float] = deque(maxlen=_LAST)
        self.windows = 0

    def add(self, outcome: _Outcome) -> None:
        assert outcome.frame is not None
        self.latency.append(1e3 * (time.perf_counter() - outcome.job.arrived))
        for part, taken in self.parts.items():
            taken.append(1e3 * getattr(outcome.frame.timings, part))
        self.windows += outcome.frame.timings.windows


def _say(text: str) -> None:
    tqdm.write(f"{'video':12}{text}", file=sys.stderr)


def _progress(report: VideoReport, frames: int, options: VideoOptions) -> Any:
    total = None if report.live or options.seconds is not None or not frames else -(-frames // options.every)
    return tqdm(total=total, unit="frame", disable=None, leave=False)


def _complete(report: VideoReport, tracks: Tracks, times: _Times, classes: tuple[str, ...]) -> None:
    report.frames, report.windows = tracks.frames, times.windows
    if not tracks.frames:
        return
    report.classes = class_shares(tracks.counts, int(tracks.counts.sum()), classes)
    report.encoders = {str(track.path): track.encoder for track in tracks.tracks.values()}
    report.median_ms = {part: round(statistics.median(taken), 3) for part, taken in times.parts.items()}
    if report.live:
        p50, p95 = np.percentile(times.latency, (50, 95))
        report.latency_ms = {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}
