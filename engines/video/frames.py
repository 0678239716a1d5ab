"""What a video is to the rest: frames with their times, out of whatever reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from engines.errors import DeployError
from engines.images.bands import Decoded


@dataclass(frozen=True)
class Heard:
    """The sound of a video.  path: of its file.  origin: where that one's clock stands at the start, in seconds."""

    path: Path
    origin: Fraction


@dataclass(frozen=True)
class VideoInfo:
    """width, height: of its frames as they are shown, in pixels.  rate: frames a second, None where nobody says.

    tick: of its clock, in seconds.  frames: as many as it says it has, 0 where it does not.
    aspect: width of a pixel over its height.  live: whether frames come when they come, and wait for nobody.
    endless: whether it has no end of its own, so that it can come back when there are no more frames.
    decoder: what it is decoded by.  sound: None where there is none, or none that can be read a second time.
    """

    width: int
    height: int
    rate: Fraction | None
    tick: Fraction
    frames: int = 0
    aspect: Fraction = Fraction(1)
    live: bool = False
    endless: bool = False
    decoder: str = ""
    sound: Heard | None = None


class BrokenOffError(DeployError):
    """A source gives no more frames that is `VideoInfo.endless`: a new connection may."""


def always() -> bool:
    return True


class VideoFrame:
    """index: in the video, from 0.  time: seconds from its start.  arrived: on `time.perf_counter`, when its data came.

    convert: makes the picture, once, when it is looked at.
    """

    def __init__(self, index: int, time: Fraction, arrived: float, convert: Callable[[], Decoded]) -> None:
        self.index, self.time, self.arrived = index, time, arrived
        self._convert: Callable[[], Decoded] | None = convert
        self._picture: Decoded | None = None

    @property
    def picture(self) -> Decoded:
        """(H, W, C) uint8, upright, and what alpha hides."""
        if self._picture is None:
            assert self._convert is not None
            self._picture, self._convert = self._convert(), None  # lets go of what was decoded
        return self._picture

    def moved(self, index: int, time: Fraction) -> VideoFrame:
        return VideoFrame(index, time, self.arrived, lambda: self.picture)


def time_after(last: Fraction, said: Fraction | None, step: Fraction) -> Fraction:
    """Of the next frame, in seconds: what its source says, or a step more where that says nothing or goes back."""
    return said if said is not None and said > last and said >= 0 else last + step


class VideoReader(Protocol):
    """A video that is open.  What makes one is a context manager: `engines.video.open_video`."""

    @property
    def info(self) -> VideoInfo: ...

    @property
    def notes(self) -> list[str]:
        """What the user should hear about how it was read; complete after the last frame."""

    def frames(self, wanted: Callable[[], bool] = always) -> Iterator[VideoFrame]:
        """In the order in which they are shown; times increase.

        wanted: asked while none comes, whether to wait any longer.  Raises DeployError where it breaks off or was
        damaged, after all that could be decoded.  Runs in one thread.
        """


Dial = Callable[[], AbstractContextManager[VideoReader]]  # what opens one
