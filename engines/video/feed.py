"""Frames read by a thread of their own: all of them in order, or of a live source the newest."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from engines.errors import DeployError
from engines.guard.child import end_at_once
from engines.guard.stop import Stop
from engines.video.frames import VideoFrame, VideoReader

HELD = 2**25  # pixels that are decoded and wait, at one frame or more
_MOST = 4  # frames that wait
_LEAVE = {False: 6.0, True: 1.0}  # seconds that a thread is waited for which hangs in a read, of a file and live
_LOOK = 0.2  # seconds between looks at whether a signal has come: a wait without end hears none on some systems


@dataclass(frozen=True)
class Excerpt:
    """every: one frame of so many.  seconds: from the first on, of the video's time; of a live one also of ours."""

    every: int = 1
    seconds: float | None = None


class Feed:
    """An iterator of frames for the thread that has the device.

    dropped: frames of a live source that were passed over, since a newer one was there before the device was free.
    stop: as of `asked_to_stop`.  Iterating raises the reader's DeployError, after all frames before.  Leaving waits for
    the thread.
    """

    def __init__(self, reader: VideoReader, cut: Excerpt, stop: Stop | None = None) -> None:
        self._reader, self._cut = reader, cut
        self._live = reader.info.live
        self._most = 1 if self._live else max(1, min(_MOST, HELD // (reader.info.width * reader.info.height)))
        self._waiting: deque[VideoFrame] = deque()
        self._changed = threading.Condition()
        self._stop, self._over, self._left = stop or Stop(), False, False
        self._error: DeployError | None = None
        self._begun: float | None = None  # when the first frame was there
        self.dropped = 0
        # Not waited for when the program ends: it may hang in a read that has no end.
        self._thread = threading.Thread(target=self._read, name="edgeseg-video", daemon=True)

    def stop(self) -> None:
        """No frame after those that wait."""
        self._stop.asked = True

    @property
    def ready(self) -> bool:
        """Whether the next frame, or the end, is there without waiting."""
        return bool(self._waiting) or self._over or not self._wanted()

    def __iter__(self) -> Iterator[VideoFrame]:
        while True:
            with self._changed:
                while not self.ready:
                    self._changed.wait(_LOOK)
                if not self._waiting:
                    if self._error is not None and not self._stopped:
                        raise self._error
                    return
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left = True
        self._thread.join(_LEAVE[self._live])
        end_at_once(self._thread.is_alive)  # it may hang in FFmpeg

    @property
    def _stopped(self) -> bool:
        return self._stop.asked or self._left

    def _wanted(self) -> bool:
        """Whether more frames are: until stopped, and of a live source for so many seconds, if none comes, too."""
        seconds, begun = self._cut.seconds, self._begun
        late = self._live and seconds is not None and begun is not None and time.perf_counter() - begun >= seconds
        return not (self._stopped or late)

    def _read(self) -> None:
        error: DeployError | None = DeployError("video: its reader failed; what it said stands above")
        try:
            for frame in self._chosen():
                if not self._live:
                    _ = frame.picture  # here, and not in the thread that has the device
                self._put(frame)
            error = None
        except DeployError as failed:
            error = failed
        finally:
            with self._changed:
                self._error, self._over = error, True
                self._changed.notify_all()

    def _chosen(self) -> Iterator[VideoFrame]:
        first: VideoFrame | None = None
        for frame in self._reader.frames(self._wanted):
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

    def _put(self, frame: VideoFrame) -> None:
        with self._changed:
            if self._live:
                self.dropped += len(self._waiting)
                self._waiting.clear()
            while len(self._waiting) >= self._most and not self._stopped:
                self._changed.wait(_LOOK)
            self._waiting.append(frame)
            self._changed.notify_all()
