"""Frames -> video files, by FFmpeg through PyAV: labels without loss, overlays to look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from engines.contract import UInt8
from engines.errors import DeployError
from engines.spec import RGB
from engines.video.av_read import require_av
from engines.video.frames import VideoInfo
from engines.video.sound import Sound, opened

_UNKNOWN = Fraction(25)  # frames a second, said where nobody knows; times are written all the same
_BT709, _LIMITED, _FULL = 1, 1, 2  # of AVColorSpace, its primaries and transfer likewise; of AVColorRange
# The best that this FFmpeg has: H.264 by x264 or OpenH264, where it was built with one; MPEG-4 always is there.
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libopenh264": {"b": "8M"},
    "mpeg4": {"q": "3", "flags": "+qscale", "global_quality": str(3 * 118)},
}
_MPEG4_TICKS = 60_000  # a second; its standard allows 65535


@dataclass(frozen=True)
class Look:
    """What labels are called, and the colours that they are shown in."""

    classes: tuple[str, ...]
    palette: tuple[RGB, ...]


class VideoFile:
    """encoder: FFmpeg's name of it.  note: what of the source is not in it, or "".

    Frames are (H, W) or (H, W, 3) uint8.
    """

    def __init__(
        self, path: Path, container: Any, stream: Any, kind: str, tick: Fraction, sound: Sound | None = None
    ) -> None:  # fmt: skip
        self._path, self._container, self._stream, self._kind, self._tick = path, container, stream, kind, tick
        self._sound, self._last = sound, Fraction(0)
        self.note = ""
        self.encoder = str(stream.codec_context.name)

    def add(self, pixels: UInt8, time: Fraction) -> None:
        """time: seconds from the start, later than the last.  Raises DeployError."""
        from av import VideoFrame

        height, width = self._stream.height, self._stream.width
        if pixels.shape[:2] != (height, width):  # of odd size, which half the encoders do not take: the edge again
            more = (height - pixels.shape[0], width - pixels.shape[1])
            pixels = np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        with _explained(self._path):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=self._kind)
            if self._kind == "rgb24":
                frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED)
            frame.pts, frame.time_base = round(time / self._tick), self._tick
            self._container.mux(self._stream.encode(frame))
            self._last = time
            self._hear(time)

    def finish(self) -> None:
        """Write what the encoder holds, and the end of the file."""
        with _explained(self._path):
            self._container.mux(self._stream.encode())
            self._hear(self._last + 1 / Fraction(self._stream.average_rate or _UNKNOWN))
            self._container.close()

    def _hear(self, until: Fraction) -> None:
        from av.error import ArgumentError, InvalidDataError

        for packet in self._sound.until(until) if self._sound else ():
            try:
                self._container.mux(packet)
            except (ArgumentError, InvalidDataError):  # of a source that is damaged, which the pictures may survive
                self.note = f"{self._path.name}: some of its source's sound is damaged, and not in it"


@contextmanager
def write_grey(
    path: Path, size: tuple[int, ...], info: VideoInfo, look: Look | None, named: Path | None = None
) -> Iterator[VideoFile]:  # fmt: skip
    """FFV1 in Matroska: every byte of a frame (H, W) uint8 comes back as it was, each frame by itself.

    look: written as tags, ``CLASS_0=road`` and ``COLOR_0=#804080``.  named: in messages, in place of `path`.
    Raises DeployError.
    """
    named = named or path
    av = require_av(str(named))
    with _explained(named):
        container = av.open(str(path), "w", format="matroska")
    with _closing(container):
        if look is not None:
            for label, (name, colour) in enumerate(zip(look.classes, look.palette, strict=True)):
                container.metadata[f"CLASS_{label}"] = name
                container.metadata[f"COLOR_{label}"] = "#{:02x}{:02x}{:02x}".format(*colour)
        options = {"level": "3", "g": "1", "slicecrc": "1"}
        with _explained(named):
            stream = _stream(container, "ffv1", size, info, options)
        stream.pix_fmt = "gray"
        stream.codec_context.color_range = _FULL  # else a player may stretch 16..235
        yield _opened(named, container, stream, kind="gray", tick=info.tick)


@contextmanager
def write_picture(
    path: Path, size: tuple[int, ...], info: VideoInfo, named: Path | None = None
) -> Iterator[VideoFile]:  # fmt: skip
    """An .mp4 to look at, of frames (H, W, 3) uint8 RGB, BT.709 and limited range as players expect.

    An odd size grows by the last row or column.  The source's sound is copied, where MP4 has a place for it.
    named: in messages, in place of `path`.  Raises DeployError.
    """
    named = named or path
    av = require_av(str(named))
    name = next(each for each in _ENCODERS if each in av.codecs_available)
    tick = info.tick if name != "mpeg4" or info.tick.denominator < _MPEG4_TICKS else Fraction(1, _MPEG4_TICKS)
    with _explained(named):
        container = av.open(str(path), "w", format="mp4")
    with _closing(container), ExitStack() as stack:
        even = tuple(side + side % 2 for side in size)
        with _explained(named):
            stream = _stream(container, name, even, info, dict(_ENCODERS[name]))
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_range, context.colorspace = _LIMITED, _BT709
        context.color_primaries = context.color_trc = _BT709
        sound = stack.enter_context(opened(info.sound, container)) if info.sound else None
        file = _opened(named, container, stream, kind="rgb24", tick=tick, sound=sound)
        if info.sound and sound is None:
            file.note = f"{named.name} has no sound: an MP4 cannot hold that of its source as it is"
        yield file


def _stream(container: Any, name: str, size: tuple[int, ...], info: VideoInfo, options: dict[str, str]) -> Any:
    stream = container.add_stream(name, rate=info.rate or _UNKNOWN, options=options)
    stream.height, stream.width = size
    if info.aspect != 1:
        stream.codec_context.sample_aspect_ratio = info.aspect
    return stream


def _opened(
    path: Path, container: Any, stream: Any, kind: str, tick: Fraction, sound: Sound | None = None
) -> VideoFile:  # fmt: skip
    stream.codec_context.time_base = tick  # of the source, so that its times need no rounding
    return VideoFile(path, container=container, stream=stream, kind=kind, tick=tick, sound=sound)


@contextmanager
def _closing(container: Any) -> Iterator[None]:
    from av.error import FFmpegError

    try:
        yield
    finally:
        with suppress(FFmpegError, OSError):  # after `finish` it is closed; otherwise the first error is to be reported
            container.close()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    from av.error import FFmpegError

    try:
        yield
    except (FFmpegError, OSError) as error:
        said = getattr(error, "strerror", None) or error
        raise DeployError(f"output {path}: cannot be written: {said}") from error
