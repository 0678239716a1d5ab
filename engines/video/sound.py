"""The sound of a video file, copied beside its overlay as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from engines.video.frames import Heard

_EXPERIMENTAL = ("truehd",)  # FFmpeg then refuses the whole file


class Sound:
    """Packets of `stream`, put into `target` as the overlay comes to their times."""

    def __init__(self, container: Any, stream: Any, target: Any, origin: Fraction) -> None:
        self._target, self._origin = target, origin
        self._packets = container.demux(stream)
        self._next: Any = None

    def until(self, time: Fraction) -> Iterator[Any]:
        """Those that begin before `time`, seconds from the start.  A file that breaks off is its reader's to report."""
        from av.error import FFmpegError

        while True:
            try:
                packet, self._next = self._next or next(self._packets, None), None
            except FFmpegError:
                return
            if packet is None:
                return
            if packet.dts is None or packet.pts is None:  # the end, or nothing that could be placed
                continue
            if packet.pts * packet.time_base - self._origin >= time:
                self._next = packet
                return
            shift = round(self._origin / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, self._target
            yield packet


@contextmanager
def opened(heard: Heard, container: Any) -> Iterator[Sound | None]:
    """What is to be heard, for a container that has no packets yet; None where its format has no place for it."""
    import av

    try:
        file = av.open(str(heard.path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError):  # it is gone since its reader has opened it
        yield None
        return
    with file:
        stream: Any = file.streams.best("audio")
        known = stream is not None and stream.codec_context is not None and stream.codec_context.sample_rate
        try:
            target = container.add_stream_from_template(stream) if known and stream.name not in _EXPERIMENTAL else None
        except ValueError:
            target = None
        yield Sound(file, stream, target, heard.origin) if target is not None else None
