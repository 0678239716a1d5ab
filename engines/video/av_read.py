"""Videos, pipes, cameras and network streams -> frames, by FFmpeg through PyAV."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from engines.contract import UInt8
from engines.errors import DeployError, without_secrets
from engines.files import refuse_pointer
from engines.images.bands import Decoded, picture_of
from engines.images.videos import INSTALL, is_endless, is_stream
from engines.machine.limits import cores
from engines.spec import Pixels
from engines.video.arrivals import Arrivals
from engines.video.frames import BrokenOffError, Heard, VideoFrame, VideoInfo, VideoReader, always, time_after

_OPENING, _STALLED = 15.0, 5.0  # seconds that a network is waited for: to begin, and between two packets
_THREADS = 4  # of a decoder: each holds a frame
_DECLARE = frozenset({"mov", "mp4", "matroska", "webm", "avi", "flv", "asf"})  # formats that say how long they are
_SLACK = Fraction(1, 4)  # seconds that a video may be shorter than it says
_FASTEST = 1000  # frames a second; what is above is a clock's rate
_OLDEST = 17  # of PyAV; before, it converted every colour as if it were BT.601 and limited, whatever the tags say
_V4L2 = "v4l2"
_CAMERAS = {  # what the system's errors mean of a device as /dev/video0
    errno.ENOTTY: "it is no camera", errno.EINVAL: "it gives no pictures that FFmpeg knows",
    errno.ENODEV: "it gives no pictures; a USB camera has several devices, of which one does",
    errno.ENXIO: "no camera is plugged in there", errno.EBUSY: "another program has it",
    errno.EACCES: "its users are those of the group video (usermod -aG video $USER, and log in anew)",
}  # fmt: skip
_HDR = {16: "PQ", 18: "HLG"}  # of AVColorTransferCharacteristic


class AvReader:
    """container: open.  stream: of it, the one that is read.  file: what it is, where it can be opened once more."""

    def __init__(
        self, container: Any, stream: Any, source: str, live: bool, wanted: Pixels, file: Path | None
    ) -> None:  # fmt: skip
        self._container, self._stream, self._source, self._live = container, stream, source, live
        self._wanted, self.notes = wanted, list[str]()
        self._file = file
        self._endless = live and not container.duration
        self._go_on: Callable[[], bool] = always
        self._reading = threading.Lock()  # held while a thread is inside of the container
        self._arrivals = Arrivals() if live else None
        self._declares = not live and bool(_DECLARE & set(container.format.name.split(",")))
        self._damaged = 0
        self._end = Fraction(0)  # of the last packet, on the container's clock
        rate = stream.average_rate or stream.guessed_rate
        self._rate = Fraction(rate) if rate and 0 < rate <= _FASTEST else None
        self._decoded = self._decode()
        first: Any = next(self._decoded, None)
        if first is None:
            raise DeployError(f"video {source}: got no frame that can be decoded, expected some")
        self._first, self._size, self._turn = first, (first.width, first.height), _turn_of(first)
        self.info = self._described(first)

    def frames(self, wanted: Callable[[], bool] = always) -> Iterator[VideoFrame]:
        self._go_on = wanted
        with self._reading:
            origin, step = self._origin(), 1 / (self._rate or Fraction(25))
            last = -step
            for index, frame in enumerate(self._all()):
                if (frame.width, frame.height) != self._size:
                    raise DeployError(
                        f"video {self._source}: got a frame of {frame.width}x{frame.height}, expected "
                        f"{self._size[0]}x{self._size[1]} as before; cut it there"
                    )
                said = None if frame.pts is None else frame.pts * frame.time_base - origin
                last = time_after(last, said, step)
                arrived = self._arrivals.take(frame.pts) if self._arrivals else time.perf_counter()
                yield VideoFrame(index, last, arrived, partial(self._picture, frame))
            self._complain()

    def close(self) -> None:
        """Unless a thread hangs inside: it then ends with the program."""
        if self._reading.acquire(blocking=False):
            self._container.close()
            self._reading.release()

    def _all(self) -> Iterator[Any]:
        frame, self._first = self._first, None
        if frame is not None:
            yield frame
        yield from self._decoded

    def _decode(self) -> Iterator[Any]:
        """Frames as FFmpeg decodes them.  Packets that it cannot decode are counted, and the others go on."""
        import av

        streams = [self._stream] if self._live else [each for each in self._container.streams if each.time_base]
        packets = self._container.demux(*streams)
        with _explained(self._source, "breaks off: ", BrokenOffError if self._endless else DeployError):
            for packet in self._arrivals.timed(packets) if self._arrivals else packets:
                if not self._go_on():
                    return
                if packet.pts is not None:
                    self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream is not self._stream and packet.stream.index != self._stream.index:
                    continue
                if packet.is_corrupt and self._declares:  # the file ends inside of it
                    self._damaged += 1
                    continue
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    self._damaged += 1
                    continue
                yield from frames

    def _complain(self) -> None:
        """Raises DeployError where a file has less than it says, or was damaged; of a live source it is a note."""
        lost = f"{self._damaged} of its packets cannot be decoded" if self._damaged else ""
        if self._live:
            self.notes += [f"{self._source}: {lost}"] if lost else []
            return
        declared = Fraction(self._container.duration or 0, 1_000_000)
        if self._declares and declared:
            # Matroska's counts from 0, wherever it begins.
            end = self._end - (0 if "matroska" in self._container.format.name else self._origin())
            if end + max(_SLACK, 3 / (self._rate or 25)) < declared:
                lost = f"breaks off after {float(end):.2f} of {float(declared):.2f} s"
        if lost:
            raise DeployError(f"video {self._source}: damaged or incomplete: {lost}")

    def _origin(self) -> Fraction:
        """Where the container's clock stands at the start, in seconds."""
        streams = [self._stream] if self._live else self._container.streams
        starts = [each.start_time * each.time_base for each in streams if each.start_time is not None]
        return Fraction(min(starts, default=Fraction(0)))

    def _described(self, frame: Any) -> VideoInfo:
        stream = self._stream
        width, height = self._size
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        if self._turn[0]:
            width, height, aspect = height, width, 1 / aspect
        if frame.interlaced_frame:
            self.notes.append(f"{self._source} is interlaced; its fields are labelled together")
        if stream.codec_context.color_trc in _HDR:
            kind = _HDR[stream.codec_context.color_trc]
            self.notes.append(f"{self._source} is HDR ({kind}): its values are taken as they are, and look dull")
        others = sum(not _is_cover(each) for each in self._container.streams.video) - 1
        if others:
            self.notes.append(f"{self._source} has {others + 1} videos; the one that FFmpeg prefers was taken")
        sound = Heard(self._file, self._origin()) if self._file and self._container.streams.audio else None
        return VideoInfo(
            width, height, self._rate, Fraction(stream.time_base), frames=stream.frames, aspect=aspect,
            live=self._live, endless=self._endless, decoder=f"FFmpeg {stream.codec_context.name}", sound=sound,
        )  # fmt: skip

    def _picture(self, frame: Any) -> Decoded:
        """By FFmpeg's own conversion, which follows the frame's tags: matrix and range."""
        clear = any(component.is_alpha for component in frame.format.components)
        with _explained(self._source, "a frame cannot be converted: "):
            values: UInt8 = frame.to_ndarray(format="rgba" if clear else "rgb24")
        turned, mirrored, flipped = self._turn
        if turned:
            values = values.swapaxes(0, 1)
        values = values[:: -1 if flipped else 1, :: -1 if mirrored else 1]
        hidden = values[:, :, 3] == 0 if clear else None
        pixels = values if self._wanted.count == 4 and clear else values[:, :, :3]
        found = picture_of(pixels, self._wanted, Path(self._source))
        return Decoded(found.pixels, hidden if hidden is not None and hidden.any() else None)


@contextmanager
def open_av(source: str, wanted: Pixels, max_pixels: int) -> Iterator[VideoReader]:
    """Raises DeployError where FFmpeg cannot open it, it has no picture, or one of more than `max_pixels`."""
    name, path = without_secrets(source), Path(source)
    av = require_av(name)
    remote, camera = is_stream(source), path.is_char_device()
    options = {"rtsp_transport": "tcp"} if source.lower().startswith("rtsp") else {}
    if camera and not any(_V4L2 in kinds.split(",") for kinds in av.formats_available):
        raise DeployError(
            f"video {name}: got an FFmpeg without {_V4L2}, expected it for a camera; PyAV's wheels for Linux have it: "
            "pip install --force-reinstall --only-binary av av"
        )
    if not remote and not camera:
        if path.is_file():
            _refuse_pointer(path)
        options = {"protocol_whitelist": "file"}  # a file that names other places is not followed
    with _explained(name, "", meaning=_CAMERAS if camera else {}):
        container = av.open(
            source if remote else str(path.absolute()), format=_V4L2 if camera else None, options=options,
            timeout=(_OPENING, _STALLED) if remote else None, metadata_errors="replace",
        )  # fmt: skip
    reader: AvReader | None = None
    try:
        live = camera or is_endless(source) or (remote and not _is_finite(container))
        with _explained(name, ""):
            stream = _best(container, name)
            if stream.width * stream.height > max_pixels:
                raise DeployError(
                    f"video {name}: got frames of {stream.width}x{stream.height}, more than {max_pixels} pixels; "
                    "if that is no accident, raise --max-pixels"
                )
            stream.thread_type = "SLICE" if live else "AUTO"  # threads by frame answer as many frames later
            stream.codec_context.thread_count = min(_THREADS, cores())
            file = path.absolute() if not remote and path.is_file() else None
            reader = AvReader(container, stream, name, live=live, wanted=wanted, file=file)
        yield reader
    finally:
        if reader is None:
            container.close()
        else:
            reader.close()


def _is_finite(container: Any) -> bool:
    """Whether it says how long it is, in seconds, or in bytes as a server does, or comes in pieces."""
    return bool(container.duration or "hls" in container.format.name or container.size > 0)


def _best(container: Any, name: str) -> Any:
    """The video that FFmpeg prefers; a cover is none.  Raises DeployError."""
    videos = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not videos:
        found = {"a cover picture" if stream.type == "video" else stream.type for stream in container.streams}
        kinds = ", ".join(sorted(found)) or "nothing"
        raise DeployError(f"video {name}: got {kinds}, expected a video")
    best = container.streams.best("video")
    chosen = best if any(stream.index == best.index for stream in videos) else videos[0]
    if chosen.codec_context is None:
        raise DeployError(f"video {name}: of a codec that this FFmpeg has no decoder for; write it in another")
    return chosen


def _is_cover(stream: Any) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _turn_of(frame: Any) -> tuple[bool, bool, bool]:
    """What its display matrix asks for: rows become columns; then mirrored left to right; then upside down.

    The matrix is nine 32-bit integers, (a, b, u, c, d, v, x, y, w): a pixel at (x, y) is shown at (ax + cy, bx + dy).
    Turns by an odd angle are rounded to a quarter.
    """
    matrix = next((bytes(each) for each in frame.side_data if each.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _refuse_pointer(path: Path) -> None:
    try:
        refuse_pointer(path, "video")
    except OSError as error:
        raise DeployError(f"video {path}: cannot be read: {error.strerror}") from error


@contextmanager
def _explained(
    name: str, what: str, failure: type[DeployError] = DeployError, meaning: Mapping[int, str] = MappingProxyType({})
) -> Iterator[None]:
    """Errors of FFmpeg and of the system as one line.  Its own would name the source with its password.

    meaning: of the system's errors by number, for the user.
    """
    import av

    try:
        yield
    except av.error.EOFError as error:
        raise failure(f"video {name}: got no frame that can be decoded, expected some") from error
    except av.error.InvalidDataError as error:
        raise failure(f"video {name}: {what}no video, damaged or incomplete (FFmpeg)") from error
    except av.error.ExitError as error:
        raise failure(f"video {name}: {what}nothing came for {_STALLED:g} s") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        hint = meaning.get(getattr(error, "errno", None) or 0)
        raise failure(f"video {name}: {what}FFmpeg says: {said}{'; ' + hint if hint else ''}") from error


def require_av(name: str) -> Any:
    """PyAV.  name: of the video that wants it.  Raises DeployError where there is none, or an older one."""
    try:
        import av
    except ImportError as error:
        raise DeployError(f"video {name}: expected PyAV for it; {INSTALL}") from error
    if int(av.__version__.split(".")[0]) < _OLDEST:
        raise DeployError(f"video {name}: got PyAV {av.__version__}, expected {_OLDEST} or later; {INSTALL}")
    return av
