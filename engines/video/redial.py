"""A camera or stream that broke off is dialled again until it is back; its frames go on at their true distance."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction

from engines.errors import DeployError
from engines.video.frames import BrokenOffError, Dial, VideoFrame, VideoInfo, VideoReader, always

_FIRST, _LONGEST = 1.0, 30.0  # seconds between two tries: twice as many after each
_STEADY = 10.0  # seconds from a call to its last frame: then it was back; a file sent again and again comes faster
_LOOK = 0.2  # seconds between looks at whether anybody still waits


@contextmanager
def redialled(dial: Dial, source: str, patience: float, say: Callable[[str], None]) -> Iterator[VideoReader]:
    """What `dial` opens; where that is endless, with what it opens after a loss as its continuation.

    source: as messages name it.  patience: seconds that a loss may last, with returns that are shorter than `_STEADY`;
    0: none.  say: hears of each loss and return.
    Raises DeployError where the first try fails: what was never there is not waited for.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(dial())
        if not (reader.info.endless and patience):
            yield reader
            return
        line = Redialled(
            reader, opened=stack.pop_all(), dial=dial, source=source, patience=patience, say=say
        )  # fmt: skip
        try:
            yield line
        finally:
            line.close()


class Redialled:
    """reconnects: times that it came back.  away: seconds without it, in all."""

    def __init__(
        self, reader: VideoReader, opened: ExitStack, dial: Dial, source: str, patience: float,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._reader, self._opened, self._dial = reader, opened, dial
        self._source, self._patience, self._say = source, patience, say
        self._using = threading.Lock()  # held while a thread is inside
        self._notes: dict[str, None] = {}  # of earlier connections, each once
        self.info: VideoInfo = reader.info
        self._away = 0.0  # of losses that are over
        self._gone: float | None = None  # since when it is, on `time.perf_counter`, as the next two
        self._dialling = self._until = -math.inf  # when its connection was begun; until when it is dialled again
        self._pause = _FIRST
        self.reconnects = 0

    @property
    def notes(self) -> list[str]:
        return list(self._notes | dict.fromkeys(self._reader.notes))

    @property
    def away(self) -> float:
        return self._away + (0.0 if self._gone is None else time.perf_counter() - self._gone)

    def frames(self, wanted: Callable[[], bool] = always) -> Iterator[VideoFrame]:
        last, came = None, time.perf_counter()
        with self._using:
            while True:
                shift, index = Fraction(0), 0 if last is None else last.index + 1
                why = "its other side ended it"
                try:
                    for frame in self._reader.frames(wanted):
                        if last is not None and not frame.index:
                            shift = self._distance(last, frame)
                        last, came = frame.moved(index + frame.index, frame.time + shift), frame.arrived
                        yield last
                except BrokenOffError as error:
                    why = str(error).removeprefix(f"video {self._source}: ").removeprefix("breaks off: ")
                if not wanted() or not self._dialled(why, came, wanted):
                    return

    def close(self) -> None:
        """Unless a thread hangs inside: it then ends with the program."""
        if self._using.acquire(blocking=False):
            self._opened.close()
            self._using.release()

    def _distance(self, last: VideoFrame, frame: VideoFrame) -> Fraction:
        """What is added to a new connection's times, from 0: by our clock, in whole ticks, and one at least."""
        ticks = max(1, round((frame.arrived - last.arrived) / self.info.tick))
        return last.time + ticks * self.info.tick - frame.time

    def _dialled(self, why: str, since: float, wanted: Callable[[], bool]) -> bool:
        """Whether it is back; not where nobody waits any more.  since: when the last frame came, on `perf_counter`.

        Raises DeployError where it stays away, or comes back as another.
        """
        self._notes |= dict.fromkeys(self._reader.notes)
        self._opened.close()  # a device can be opened once
        now, lost = time.perf_counter(), f"video {self._source}: lost ({why}), and not back"
        if since - self._dialling >= _STEADY:
            self._until, self._pause = now + self._patience, _FIRST
        elif now >= self._until:
            raise BrokenOffError(f"{lost} for as long as {_STEADY:g} s within {self._patience:g} s")
        self._say(f"{self._source} is lost ({why}); dialled again for {self._until - now:.3g} s")
        self._gone = since
        while True:
            if not _slept(min(self._pause, self._until - time.perf_counter()), wanted):
                return False
            self._pause = min(2 * self._pause, _LONGEST)
            self._dialling = time.perf_counter()
            try:
                with ExitStack() as stack:
                    self._reader = stack.enter_context(self._dial())
                    self._opened = stack.pop_all()
                break
            except DeployError as error:
                if time.perf_counter() >= self._until:
                    said = str(error).removeprefix(f"video {self._source}: ")
                    raise BrokenOffError(f"{lost} within {self._patience:g} s: {said}") from error
        self._require_alike(self._reader.info)
        self.reconnects, self._away, before, self._gone = self.reconnects + 1, self.away, self._away, None
        self._say(f"{self._source} is back after {self._away - before:.1f} s")
        return True

    def _require_alike(self, info: VideoInfo) -> None:
        before, now = ((each.width, each.height, each.aspect) for each in (self.info, info))
        if before != now:
            shapes = [f"{width}x{height}" + (f" (pixels {aspect})" if aspect != 1 else "")
                      for width, height, aspect in (now, before)]  # fmt: skip
            raise DeployError(
                f"video {self._source}: came back with frames of {shapes[0]}, expected {shapes[1]} as before; run it "
                "again, into another folder"
            )


def _slept(seconds: float, wanted: Callable[[], bool]) -> bool:
    """False as soon as nobody waits any more."""
    end = time.perf_counter() + seconds
    while wanted():
        left = end - time.perf_counter()
        if left <= 0:
            return True
        time.sleep(min(_LOOK, left))
    return False
