"""One source while it is run: its frames with their labels come in, its files and its report go out."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from engines.errors import DeployError, GpuLostError, without_secrets
from engines.guard.stop import Stop
from engines.images.bands import Decoded
from engines.images.write import class_shares
from engines.segmenter import Segmenter
from engines.stream.flow import Done
from engines.tiling.device import PARTS
from engines.video.av_write import Look
from engines.video.feed import Feed
from engines.video.frames import VideoFrame, VideoReader
from engines.video.redial import Redialled
from engines.video.report import VideoOptions, VideoReport
from engines.video.tracks import Tracks

_LAST = 10_000  # frames whose times are kept: a camera runs for days
FrameDone = Done[tuple[Feed, VideoFrame], Decoded]


class Recording:
    """source: as it was given.  target: of its labels, NAME.labels.mkv; what else is asked for lies beside it.

    outcome: once it has ended, its report, or why nothing of it is there.  heard: called, in any thread, when there is
    room again.  Left before it has ended it leaves nothing.
    """

    def __init__(
        self, segmenter: Segmenter, source: str, target: Path, feed: Feed, options: VideoOptions, stop: Stop,
        heard: Callable[[], None],
    ) -> None:  # fmt: skip
        self.source, self.feed = source, feed
        self._target, self._options, self._stop, self._heard = target, options, stop, heard
        self._classes, self._palette = segmenter.spec.classes, segmenter.spec.palette
        self._quiet = segmenter.device.name == "host"
        self._begin = time.perf_counter()
        self._tracks: Tracks | None = None  # from the first frame on
        self._times = _Times()
        self._came = 0  # of what the feed gave, whatever became of it
        self._broken: DeployError | None = None  # why there are no frames after those that are written
        self._unwritten: DeployError | None = None  # why its files are not whole
        self.outcome: VideoReport | DeployError | None = None

    @property
    def free(self) -> bool:
        """Whether its files keep up; else their frames would pile up, or hold up those of others."""
        return self._tracks is None or not self._tracks.behind

    @property
    def over(self) -> bool:
        """Whether no frame of it will come, and none is under way."""
        return self.feed.over and self.feed.taken == self._came

    def put(self, done: FrameDone) -> None:
        """The next frame in order, with its labels or why it has none, which is the last that counts."""
        self._came += 1
        if self._broken or self._unwritten:
            return
        if done.error is not None:
            self._broken = done.error
            self.feed.leave()
            return
        assert done.mask is not None
        assert self.feed.reader is not None
        if self._tracks is None:
            self._tracks = self._begun(self.feed.reader)
        self._times.add(done)
        try:
            self._tracks.put(done.job[1], done.mask, self._options.keep_nodata)
        except DeployError as error:
            self._unwritten = error
            self.feed.leave()

    def end(self, lost: GpuLostError | None = None) -> VideoReport | DeployError:
        """Its files are in their places then, or it has none.  lost: why there are no more frames."""
        self._broken = self._broken or lost or self.feed.error
        reader, stopped = self.feed.reader, self._stop.asked
        self.feed.leave()
        try:
            self.outcome = self._ended(reader, stopped)
        except DeployError as error:
            self.outcome = error
        return self.outcome

    def __enter__(self) -> Recording:
        self.feed.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracks is not None and self.outcome is None:
            self._tracks.__exit__(kind, error, trace)
        self.feed.__exit__(kind, error, trace)

    def _begun(self, reader: VideoReader) -> Tracks:
        info, options = reader.info, self._options
        return Tracks(
            self._target, replace(info, rate=info.rate and info.rate / options.every),
            Look(self._classes, self._palette), with_overlay=options.overlay, with_confidence=options.confidence,
            quiet=self._quiet, heard=self._heard,
        )  # fmt: skip

    def _ended(self, reader: VideoReader | None, stopped: bool) -> VideoReport:
        broken = self._broken
        if reader is None:
            raise broken or DeployError("not run: stopped before")
        if self._tracks is None:
            self._tracks = self._begun(reader)
        tracks = self._tracks
        with tracks:
            if self._unwritten is not None:
                raise self._unwritten
            if self._options.skip_existing and not reader.info.live:  # the next run would take them for whole
                if isinstance(broken, GpuLostError):
                    raise broken
                if stopped:
                    raise DeployError("stopped before its end, and nothing of it left for --skip-existing")
            tracks.finish()
        name = without_secrets(self.source)
        if not tracks.frames and not stopped:
            raise broken or DeployError(f"video {name}: got no frame that can be decoded, expected some")
        info = reader.info
        report = VideoReport(
            name, str(self._target), width=info.width, height=info.height, decoder=info.decoder, live=info.live,
            frames=tracks.frames, dropped=self.feed.dropped, stopped=stopped,
            notes=[*reader.notes, *(track.note for track in tracks.tracks.values() if track.note)],
        )  # fmt: skip
        if isinstance(reader, Redialled):
            report.reconnects, report.away_seconds = reader.reconnects, round(reader.away, 3)
        if broken is not None:
            report.broken = f"{broken}; the {tracks.frames} frame(s) until then are labelled"
            report.lost = isinstance(broken, GpuLostError)
        if tracks.frames:
            report.classes = class_shares(tracks.counts, int(tracks.counts.sum()), self._classes)
            report.encoders = {str(track.path): track.encoder for track in tracks.tracks.values()}
            self._times.tell(report)
        report.seconds = round(time.perf_counter() - self._begin, 3)
        return report


class _Times:
    """Milliseconds of the last `_LAST` frames: by part, and from a frame's arrival to its labels."""

    def __init__(self) -> None:
        self.parts: dict[str, deque[float]] = {part: deque(maxlen=_LAST) for part in PARTS}
        self.latency: deque[float] = deque(maxlen=_LAST)
        self.windows = 0

    def add(self, done: FrameDone) -> None:
        assert done.frame is not None
        self.latency.append(1e3 * (time.perf_counter() - done.job[1].arrived))
        for part, taken in self.parts.items():
            taken.append(1e3 * getattr(done.frame.timings, part))
        self.windows += done.frame.timings.windows

    def tell(self, report: VideoReport) -> None:
        report.windows = self.windows
        report.median_ms = {part: round(statistics.median(taken), 3) for part, taken in self.parts.items()}
        if report.live:
            p50, p95 = np.percentile(self.latency, (50, 95))
            report.latency_ms = {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}
