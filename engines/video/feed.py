"""Frames read by a thread of their own: all of them in order, or of a live source the newest."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType

from engines.errors import DeployError
from engines.guard.child import end_at_once
from engines.guard.stop import Stop
from engines.video.frames import Dial, VideoFrame, VideoReader

HELD = 2**25  # pixels that are decoded and wait, at one frame or more
_MOST = 4  # frames that wait
_LEAVE = {False: 6.0, True: 1.0}  # seconds that a thread is waited for which hangs in a read, of a file and live
LOOK = 0.2  # seconds between looks at whether a signal has come: a wait without end hears none on some systems


@dataclass(frozen=True)
class Excerpt:
    """every: one frame of so many.  seconds: from the first on, of the video's time; of a live one also of ours."""

    every: int = 1
    seconds: float | None = None


class Feed:
    """An iterator of frames for the thread that has the device.

    video: a reader that is open, or what opens one, which then is done, and closed, by the feed's own thread.
    stop: as of `asked_to_stop`.  among: feeds that share what may be decoded and wait.
    reader: once it is open.  taken: frames that were given out.  heard: called in its thread when there is news.
    dropped: frames of a live source that were passed over, since a newer one was there before the device was free.
    Iterating raises the reader's DeployError, after all frames before.  Leaving waits for the thread.
    """

    def __init__(self, video: VideoReader | Dial, cut: Excerpt, stop: Stop | None = None, among: int = 1) -> None:
        self._dial: Dial = video if callable(video) else lambda: nullcontext(video)
        self._cut, self._among = cut, among
        self.reader: VideoReader | None = None
        self._waiting: deque[VideoFrame] = deque()
        self._changed = threading.Condition()
        self._stop, self._over = stop or Stop(), False
        self._left: float | None = None  # when, on `time.perf_counter`
        self._error: DeployError | None = None
        self._begun: float | None = None  # when the first frame was there
        self.dropped = self.taken = 0
        self.heard: Callable[[], None] = lambda: None
        # Not waited for when the program ends: it may hang in a read that has no end.
        self._thread = threading.Thread(target=self._run, name="edgeseg-video", daemon=True)

    def stop(self) -> None:
        """No frame after those that wait."""
        self._stop.asked = True

    def leave(self) -> None:
        """Nobody takes frames any more."""
        if self._left is None:
            self._left = time.perf_counter()

    @property
    def filled(self) -> bool:
        """Whether a frame is there."""
        return bool(self._waiting)

    @property
    def over(self) -> bool:
        """Whether no frame is there and none will come."""
        return not self._waiting and (self._over or not self._wanted())

    @property
    def error(self) -> DeployError | None:
        """Why it is over, where that is neither its end nor that it was stopped."""
        return None if self._stopped else self._error

    def take(self) -> VideoFrame | None:
        """The next frame, where one is there."""
        with self._changed:
            if not self._waiting:
                return None
            self.taken += 1
            self._changed.notify_all()
            return self._waiting.popleft()

    def __iter__(self) -> Iterator[VideoFrame]:
        while True:
            with self._changed:
                while not (self.filled or self.over):
                    self._changed.wait(LOOK)
                frame = self.take()
            if frame is None:
                if self.error is not None:
                    raise self.error
                return
            yield frame

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        assert self._left is not None
        patience = _LEAVE[self.reader is None or self.reader.info.live]
        self._thread.join(max(0.0, self._left + patience - time.perf_counter()))
        end_at_once(self._thread.is_alive)  # it may hang in FFmpeg

    @property
    def _stopped(self) -> bool:
        return self._stop.asked or self._left is not None

    @property
    def _live(self) -> bool:
        return self.reader is not None and self.reader.info.live

    def _wanted(self) -> bool:
        """Whether more frames are: until stopped, and of a live source for so many seconds, if none comes, too."""
        seconds, begun = self._cut.seconds, self._begun
        late = self._live and seconds is not None and begun is not None and time.perf_counter() - begun >= seconds
        return not (self._stopped or late)

    def _run(self) -> None:
        error: DeployError | None = DeployError("video: its reader failed; what it said stands above")
        try:
            with self._dial() as reader:
                self.reader = reader
                self._read(reader)
            error = None
        except DeployError as failed:
            error = failed
        finally:
            with self._changed:
                self._error, self._over = error, True
                self._changed.notify_all()
            self.heard()

    def _read(self, reader: VideoReader) -> None:
        info = reader.info
        most = 1 if info.live else max(1, min(_MOST, HELD // (self._among * info.width * info.height)))
        for frame in self._chosen(reader):
            if not info.live:
                _ = frame.picture  # here, and not in the thread that has the device
            self._put(frame, most)

    def _chosen(self, reader: VideoReader) -> Iterator[VideoFrame]:
        first: VideoFrame | None = None
        for frame in reader.frames(self._wanted):
            if first is None:
                first, self._begun = frame, time.perf_counter()  # which its data may be older than by seconds
            seconds = self._cut.seconds
            if self._stopped or (
                seconds is not None
                and (frame.time - first.time >= seconds or (self._live and frame.arrived - first.arrived >= seconds))
            ):
                return
            if frame.index % self._cut.every == 0:
                yield frame

    def _put(self, frame: VideoFrame, most: int) -> None:
        with self._changed:
            if self._live:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            while len(self._waiting) >= most and not self._stopped:
                self._changed.wait(LOOK)
            self._waiting.append(frame)
            self._changed.notify_all()
        self.heard()
