"""Which inputs are videos, and which of those come from a camera: by their names, or their first bytes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from urllib.parse import urlsplit

from engines.errors import without_secrets
from engines.images.read import SUFFIXES as IMAGES

INSTALL = "pip install 'edgeseg[video]'"
SUFFIXES = frozenset(
    {
        ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ts",
        ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v", ".vob", ".ogv", ".mxf", ".dv", ".h264", ".264", ".h265", ".265",
        ".hevc", ".av1", ".ivf", ".obu", ".y4m", ".mjpeg", ".mjpg", ".nut", ".gxf", ".rm", ".dav",
    }
)  # fmt: skip
_WHOLE = SUFFIXES - {".mjpg", ".mjpeg", ".ts", ".flv"}  # of files; these are cameras' and senders' over HTTP, too
# What `run` writes for NAME.ext, with all its options.
LABELS, OVERLAY, CONFIDENCE = ".labels.mkv", ".overlay.mp4", ".confidence.mkv"
OUTPUT_SUFFIXES = (LABELS, OVERLAY, CONFIDENCE)
# How files of Matroska, MPEG programs, Ogg, ASF, FLV, NUT, Y4M, IVF, MXF and DV begin.
_SIGNS = (
    b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"OggS", b"0&\xb2u\x8ef\xcf\x11", b"FLV\1", b"nut/multimedia container\0",
    b"YUV4MPEG2", b"DKIF", b"\6\x0e+4", b"\x1f\7\0",
)  # fmt: skip
_STILL = frozenset({b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})  # MP4's
_PACKET = 188  # bytes of an MPEG transport stream, each begun with a G
GSTREAMER = "gst:"  # before a GStreamer pipeline, or what its uridecodebin opens
_PROTOCOLS = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "http", "https"})


def readable() -> bool:
    """Whether PyAV, which reads them, is installed."""
    return importlib.util.find_spec("av") is not None


def is_stream(text: str) -> bool:
    """Whether an INPUT names no file, but what comes over a network or out of a GStreamer pipeline."""
    return text.startswith(GSTREAMER) or ("://" in text and text.split("://")[0].lower() in _PROTOCOLS)


def is_pipe_or_camera(path: Path) -> bool:
    """Whether it is a named pipe, or a device as /dev/video0."""
    return path.is_fifo() or path.is_char_device()


def is_video(path: Path) -> bool:
    """Whether a file is one: by its ending, or by its first bytes where that says nothing, as of /dev/stdin."""
    ending = path.suffix.lower()
    return ending in SUFFIXES or (ending not in IMAGES and path.is_file() and _begins_as_one(path))


def _begins_as_one(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(2 * _PACKET + 1)
    except OSError:  # said by what reads it
        return False
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL
    packets = head[::_PACKET] == b"GGG"
    return packets or head.startswith(_SIGNS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def is_endless(text: str) -> bool:
    """Whether a source has no end by its name: a camera, a stream that is no file on a server."""
    stream = is_stream(text) and not text.lower().startswith(("http://", "https://", GSTREAMER))
    return stream or Path(text).is_char_device()


def is_pipeline(text: str) -> bool:
    """Whether it is a whole GStreamer pipeline."""
    return text.startswith(GSTREAMER) and "!" in text


def is_open_ended(text: str) -> bool:
    """Whether a source may have no end: a camera, a pipe, a stream whose address does not name a file as a.mp4."""
    if not is_stream(text):
        return is_pipe_or_camera(Path(text))
    address = text.removeprefix(GSTREAMER)
    return is_pipeline(text) or is_endless(address) or Path(urlsplit(address).path).suffix.lower() not in _WHOLE


def stream_name(text: str) -> str:
    """Of what is written for a stream: ``rtsp://user:secret@10.0.0.5:554/yard?x=1`` is ``10_0_0_5_554_yard``.

    A GStreamer pipeline is called as its first element is (``gst:v4l2src name=left ! …``), or ``gstreamer``.
    """
    text = without_secrets(text.removeprefix(GSTREAMER))
    if "!" in text:
        called = re.search(r"\sname=([A-Za-z0-9_-]+)(?=\s|$)", text.split("!")[0])
        return called[1] if called else "gstreamer"
    parts = urlsplit(text)
    place = f"{parts.netloc}{parts.path}"
    return re.sub(r"[^A-Za-z0-9-]+", "_", place).strip("_") or "stream"
