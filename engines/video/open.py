"""Whatever an INPUT names as a video -> the reader that opens it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from engines.errors import without_secrets
from engines.images.read import MAX_PIXELS
from engines.images.videos import GSTREAMER
from engines.spec import COLOUR, Pixels
from engines.video.av_read import open_av
from engines.video.frames import VideoReader
from engines.video.gstreamer import open_gstreamer
from engines.video.redial import redialled


def open_video(
    source: Path | str, wanted: Pixels = COLOUR, max_pixels: int = MAX_PIXELS, reconnect: float = 0,
    say: Callable[[str], None] = lambda text: None,
) -> AbstractContextManager[VideoReader]:  # fmt: skip
    """A file, a pipe, a camera such as /dev/video0, a stream such as rtsp://…, or ``gst:`` and a GStreamer pipeline.

    wanted: what of its pictures.  reconnect: seconds that a camera or stream is dialled again for when it breaks off;
    say: hears of it.  Raises DeployError on what cannot be opened, has no picture or a larger one.
    """
    text = str(source)
    opener = open_gstreamer if text.startswith(GSTREAMER) else open_av
    return redialled(lambda: opener(text, wanted, max_pixels), without_secrets(text), reconnect, say)
