"""Whatever an INPUT names as a video -> the reader that opens it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from engines.images.read import MAX_PIXELS
from engines.images.videos import GSTREAMER
from engines.spec import COLOUR, Pixels
from engines.video.av_read import open_av
from engines.video.frames import VideoReader
from engines.video.gstreamer import open_gstreamer


def open_video(
    source: Path | str, wanted: Pixels = COLOUR, max_pixels: int = MAX_PIXELS
) -> AbstractContextManager[VideoReader]:  # fmt: skip
    """A file, a pipe, a camera such as /dev/video0, a stream such as rtsp://…, or ``gst:`` and a GStreamer pipeline.

    wanted: what of its pictures.  Raises DeployError on what cannot be opened, has no picture or a larger one.
    """
    text = str(source)
    return (open_gstreamer if text.startswith(GSTREAMER) else open_av)(text, wanted, max_pixels)
