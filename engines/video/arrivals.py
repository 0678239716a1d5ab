"""When the data of a live source's frames came: FFmpeg hands some of it out seconds later."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

_WAITED = 0.005  # seconds that only a packet takes that was not there yet
_MOST = 2000  # packets that are looked at ahead
_DRIFT = 1e-3  # seconds a second that a source's clock may lose against ours
_JUMP = 30.0  # seconds: later than that nothing is handed out, and it is the source's clock that has jumped
_KEPT = 1000  # packets that may wait to become a frame


class Arrivals:
    """By the source's own clock: each packet came as long after the promptest of them as their stamps say.

    Else what it sends while FFmpeg looks what it is (2 seconds and more), and what FFmpeg holds back until the source
    has been silent for long enough, would have come when FFmpeg let go of it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ahead = 0.0  # of our clock before the source's, at least
        self._stamp: float | None = None  # the last one, in seconds of the source's clock
        self._of: dict[int, float] = {}

    def timed(self, packets: Iterator[Any]) -> Iterator[Any]:
        """The same packets, of one stream, from the first one that was waited for on as they come."""
        from av.error import FFmpegError

        held: deque[Any] = deque()
        failed: FFmpegError | None = None
        try:
            while len(held) < _MOST:
                begin = self._clock()
                packet = next(packets, None)
                if packet is None:
                    break
                held.append(packet)
                self._see(packet)
                if self._clock() - begin > _WAITED:
                    break
        except FFmpegError as error:  # after those before it
            failed = error
        while held:
            self._keep(held[0])
            yield held.popleft()
        if failed is not None:
            raise failed
        for packet in packets:
            self._see(packet)
            self._keep(packet)
            yield packet

    def take(self, pts: int | None) -> float:
        """Of a frame by its time, once: seconds on the clock."""
        now = self._clock()
        return now if pts is None else min(now, self._of.pop(pts, now))

    def _see(self, packet: Any) -> None:
        stamp = _stamp(packet)
        if stamp is None:
            return
        ahead, drift = self._clock() - stamp, 0.0
        if self._stamp is not None:
            drift = _DRIFT * max(0.0, stamp - self._stamp)
        if self._stamp is None or ahead < self._ahead + drift or ahead > self._ahead + _JUMP:
            self._ahead = ahead
        else:
            self._ahead += drift
        self._stamp = stamp

    def _keep(self, packet: Any) -> None:
        stamp = _stamp(packet)
        if packet.pts is None or stamp is None:
            return
        if len(self._of) > _KEPT:  # of packets that never became a frame
            self._of.clear()
        self._of[packet.pts] = self._ahead + stamp


def _stamp(packet: Any) -> float | None:
    """In the order in which packets are sent, which is not that of the frames."""
    ticks = packet.pts if packet.dts is None else packet.dts
    return None if ticks is None else float(ticks * packet.time_base)
