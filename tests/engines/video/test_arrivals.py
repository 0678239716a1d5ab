"""When frames of a live source came, whatever FFmpeg held back: by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import pytest

from engines.video.arrivals import Arrivals

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")


@dataclass
class Packet:
    """As PyAV has it, of a clock of 1000 ticks a second.  dts: when it was sent."""

    pts: int | None
    dts: int | None
    time_base: Fraction = Fraction(1, 1000)


class Source:
    """Sends a packet each 0.1 s from `began` on; they are handed out when `out` says, or when they were sent."""

    def __init__(self, began: float) -> None:
        self.now = self.began = began

    def packets(self, stamps: range, out: dict[int, float], fail: Exception | None = None) -> Iterator[Packet]:
        """out: by stamp, in milliseconds."""
        for stamp in stamps:
            self.now = max(self.now, out.get(stamp, self.began + stamp / 1000))
            yield Packet(stamp + 200, stamp)  # shown two frames after it was sent
        if fail is not None:
            raise fail


def test_what_was_looked_at_first_and_what_was_held_back_came_when_it_was_sent() -> None:
    source = Source(50.0)
    source.now = 52.0
    arrivals = Arrivals(lambda: source.now)
    early = dict.fromkeys(range(0, 2000, 100), 52.0)  # while FFmpeg looked what it is
    late = dict.fromkeys(range(5000, 5300, 100), 60.0)  # after a silence
    found = []
    for packet in arrivals.timed(source.packets(range(0, 5300, 100), early | late)):
        assert packet.pts is not None
        found.append(arrivals.take(packet.pts))
        assert found[-1] <= source.now
    assert found == pytest.approx([50 + stamp / 1000 for stamp in range(0, 5300, 100)], abs=0.01)
    assert arrivals.take(200) == source.now  # once


def test_a_clock_that_drifts_or_jumps_is_followed() -> None:
    """A camera whose clock loses 100 ppm, for an hour, and is then set."""
    source = Source(0.0)
    arrivals = Arrivals(lambda: source.now)
    stamps = range(0, 3_600_000, 100)
    for packet in arrivals.timed(source.packets(stamps, {stamp: stamp / 1000 * 1.0001 for stamp in stamps})):
        assert packet.pts is not None
        assert source.now - arrivals.take(packet.pts) < 0.12  # of the first, which is held until the second
    for packet in arrivals.timed(iter([Packet(100, 100), Packet(200, 200)])):
        assert packet.pts is not None
        assert source.now - arrivals.take(packet.pts) < 0.2


def test_what_came_before_a_failure_is_not_lost() -> None:
    source = Source(0.0)
    arrivals = Arrivals(lambda: source.now)
    seen = []
    with pytest.raises(av.error.ExitError):
        seen.extend(
            packet.dts
            for packet in arrivals.timed(
                source.packets(range(0, 300, 100), {100: 0, 200: 0}, av.error.ExitError(1, ""))
            )
        )
    assert seen == [0, 100, 200]
