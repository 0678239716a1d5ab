"""GStreamer through PyGObject: what decodes in hardware on a Jetson, and any pipeline of the user's own.

gst:PIPELINE is a description as gst-launch takes it, up to a source of raw video; gst:URI is what uridecodebin opens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engines.contract import UInt8
from engines.errors import DeployError, without_secrets
from engines.images.bands import Decoded, picture_of
from engines.images.videos import GSTREAMER
from engines.spec import Pixels
from engines.video.frames import BrokenOffError, VideoFrame, VideoInfo, VideoReader, always, time_after

INSTALL = "apt-get install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-good"
_NAME = "edgeseg"
_SINK = f"appsink name={_NAME} sync=false max-buffers=2 caps=video/x-raw,format=RGB"
_SECOND = 10**9  # of GStreamer's nanoseconds
_OPENING, _STALLED = 15.0, 10.0  # seconds without a frame, until the first and between two
_LOOK = 0.2  # seconds between looks at what went wrong
_TICK = Fraction(1, 90_000)
_loading = threading.Lock()  # PyGObject that is imported by two threads at once is half there for one of them
_UNKNOWN = Fraction(25)  # frames a second where neither they nor the caps say


class GstReader:
    """pipeline: playing, its first sample pulled."""

    def __init__(
        self, gst: Any, pipeline: Any, source: str, live: bool, endless: bool, wanted: Pixels, max_pixels: int
    ) -> None:
        self._gst, self._pipeline, self._source = gst, pipeline, source
        self._failure = BrokenOffError if endless else DeployError
        self._wanted, self._sink = wanted, pipeline.get_by_name(_NAME)
        self._first = self._pull(_OPENING)
        if self._first is None:
            raise DeployError(f"video {source}: got no frame that can be decoded, expected some")
        self.info, self.notes = _info(self._first.get_caps().get_structure(0), live, endless), list[str]()
        if self.info.width * self.info.height > max_pixels:
            raise DeployError(
                f"video {source}: got frames of {self.info.width}x{self.info.height}, more than {max_pixels} pixels; "
                "if that is no accident, raise --max-pixels"
            )

    def frames(self, wanted: Callable[[], bool] = always) -> Iterator[VideoFrame]:
        sample, index, start = self._first, 0, None
        self._first, step = None, 1 / (self.info.rate or _UNKNOWN)
        last = -step
        while sample is not None and wanted():
            arrived, stamp = time.perf_counter(), sample.get_buffer().pts
            known = stamp != self._gst.CLOCK_TIME_NONE
            start = stamp if start is None and known else start
            last = time_after(last, Fraction(stamp - start, _SECOND) if known else None, step)
            yield VideoFrame(index, last, arrived, partial(self._picture, sample))
            index, sample = index + 1, self._pull(_STALLED, wanted)

    def _pull(self, patience: float, wanted: Callable[[], bool] = always) -> Any:
        """The next sample; None at the end, or where nobody waits any more.  Raises DeployError."""
        end, bus = time.monotonic() + patience, self._pipeline.get_bus()
        while wanted():
            sample = self._sink.emit("try-pull-sample", int(_LOOK * _SECOND))
            if sample is not None:
                return sample
            message = bus.timed_pop_filtered(0, self._gst.MessageType.ERROR)
            if message is not None:
                raise self._failure(f"video {self._source}: GStreamer says: {message.parse_error()[0].message}")
            if self._sink.get_property("eos"):
                return None
            if time.monotonic() >= end:
                raise self._failure(f"video {self._source}: got no frame for {patience:g} s")
        return None

    def _picture(self, sample: Any) -> Decoded:
        info, buffer = self.info, sample.get_buffer()
        structure = sample.get_caps().get_structure(0)
        size = structure.get_int("width")[1], structure.get_int("height")[1]
        if size != (info.width, info.height):
            raise DeployError(
                f"video {self._source}: got a frame of {size[0]}x{size[1]}, expected {info.width}x{info.height} as "
                "before; cut it there"
            )
        done, mapped = buffer.map(self._gst.MapFlags.READ)
        if not done:
            raise DeployError(f"video {self._source}: a frame lies where the CPU cannot read it; end with videoconvert")
        try:
            row = (3 * info.width + 3) // 4 * 4  # GStreamer's, of RGB
            rows = np.frombuffer(mapped.data, np.uint8, count=row * info.height).reshape(info.height, row)
            pixels: UInt8 = rows[:, : 3 * info.width].reshape(info.height, info.width, 3).copy()
        finally:
            buffer.unmap(mapped)
        return picture_of(pixels, self._wanted, Path(self._source))


@contextmanager
def open_gstreamer(source: str, wanted: Pixels, max_pixels: int) -> Iterator[VideoReader]:
    """Raises DeployError where GStreamer is not there, or cannot play it."""
    (gst, glib), text = _gstreamer(), source.removeprefix(GSTREAMER)
    try:
        pipeline = gst.parse_launch(_description(gst, text))
    except glib.Error as error:
        raise DeployError(f"video {without_secrets(source)}: GStreamer says: {error.message}") from error
    try:
        pipeline.set_state(gst.State.PAUSED)
        live = pipeline.get_state(int(_OPENING * _SECOND))[0] == gst.StateChangeReturn.NO_PREROLL
        pipeline.set_state(gst.State.PLAYING)
        endless = live and "num-buffers" not in text  # which gives a live source an end
        yield GstReader(
            gst, pipeline, without_secrets(source), live=live, endless=endless, wanted=wanted, max_pixels=max_pixels
        )  # fmt: skip
    finally:
        pipeline.set_state(gst.State.NULL)


def _description(gst: Any, text: str) -> str:
    if "!" in text:
        return f"{text} ! videoconvert ! {_SINK}"
    uri = text if "://" in text else Path(text).absolute().as_uri()
    # A Jetson's decoder leaves frames in memory of its own, and this element fetches them.
    fetch = "nvvidconv ! video/x-raw,format=RGBA ! " if gst.ElementFactory.find("nvvidconv") else ""
    return f'uridecodebin uri="{uri}" ! {fetch}videoconvert ! videoflip video-direction=auto ! {_SINK}'


def _info(caps: Any, live: bool, endless: bool) -> VideoInfo:
    known, above, below = caps.get_fraction("framerate")
    shaped, wide, high = caps.get_fraction("pixel-aspect-ratio")
    return VideoInfo(
        caps.get_int("width")[1], caps.get_int("height")[1], Fraction(above, below) if known and above else None,
        _TICK, aspect=Fraction(wide, high) if shaped else Fraction(1), live=live, endless=endless,
        decoder="GStreamer",
    )  # fmt: skip


def _gstreamer() -> tuple[Any, Any]:
    """Gst and GLib."""
    with _loading:
        try:
            import gi

            gi.require_version("Gst", "1.0")
            from gi.repository import GLib, Gst
        except (ImportError, ValueError) as error:
            raise DeployError(f"gst: expected GStreamer with PyGObject for it; {INSTALL}") from error
        Gst.init(None)
    return Gst, GLib
