"""Frames out of files: colours by their tags, times, and how many wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from engines.images.bands import Decoded
from engines.video.feed import Excerpt, Feed
from engines.video.frames import VideoFrame, VideoInfo, always
from engines.video.open import open_video

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import decoded, write  # noqa: E402

BT709, BT601, BT2020 = 1, 6, 9  # AVColorSpace
LUMA = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593)}  # of red and blue, ITU-R


def _rgb(luma: int, blue: int, red: int, matrix: int, full: bool) -> list[float]:
    """By the recommendations' own equations."""
    y, cb, cr = (
        (luma / 255, (blue - 128) / 255, (red - 128) / 255)
        if full
        else ((luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224)
    )
    of_red, of_blue = LUMA[matrix]
    r, b = y + 2 * (1 - of_red) * cr, y + 2 * (1 - of_blue) * cb
    g = (y - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return [min(max(255 * value, 0), 255) for value in (r, g, b)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [BT709, BT601, BT2020])
def test_colours_follow_the_tags_of_the_stream(tmp_path: Path, matrix: int, full: bool) -> None:
    """The same bytes are other colours under other tags; FFmpeg's conversion and the equations agree."""
    clip, given = tmp_path / "tagged.mkv", (120, 90, 170)
    with av.open(str(clip), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame(96, 64, "yuv420p")
        for plane, value in zip(frame.planes, given, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.colorspace, frame.color_range, frame.pts = matrix, 2 if full else 1, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with open_video(clip) as video:
        (found,) = [frame.picture.pixels for frame in video.frames()]
    assert np.array_equal(found, decoded(clip)[0][1])
    assert np.abs(found[5, 5] - np.array(_rgb(*given, matrix, full))).max() < 2.5
    others = [_rgb(*given, m, f) for m in LUMA for f in (False, True) if (m, f) != (matrix, full)]
    assert min(np.abs(found[5, 5] - np.array(other)).max() for other in others) > 2.5


def test_times_begin_where_the_file_does(tmp_path: Path) -> None:
    """A transport stream's clock begins anywhere."""
    from tests.engines.video.clips import pictures

    write(tmp_path / "a.ts", pictures(5), codec="mpeg2video")
    with open_video(tmp_path / "a.ts") as video:
        assert video.info.rate == 25
        assert [frame.time for frame in video.frames()] == [Fraction(index, 25) for index in range(5)]


class _Camera:
    """A reader that has all its frames at once, and counts those that somebody holds."""

    notes: list[str]

    def __init__(self, count: int, live: bool, width: int = 64, error: DeployError | None = None) -> None:
        self.info = VideoInfo(width, 64, Fraction(25), Fraction(1, 25), live=live)
        self.notes, self._count, self._error = [], count, error
        self.read, self.made, self.sent = 0, 0, threading.Event()

    def frames(self, wanted: Callable[[], bool] = always) -> Iterator[VideoFrame]:
        for index in range(self._count):
            self.read += 1
            yield VideoFrame(index, Fraction(index, 25), time.perf_counter(), self._picture)
        self.sent.set()
        if self._error is not None:
            raise self._error

    def _picture(self) -> Decoded:
        self.made += 1
        return Decoded(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(("width", "most"), [(64, 4), (2**18, 2), (2**22, 1)])
def test_a_file_waits_for_the_device_with_few_frames_decoded(width: int, most: int) -> None:
    """By their pixels, however many there are to come; all arrive, in order."""
    camera = _Camera(300, live=False, width=width)
    with Feed(camera, Excerpt()) as feed:
        seen = []
        for frame in feed:
            seen.append(frame.index)
            if len(seen) == 10:
                time.sleep(0.3)  # as long as the reader likes
            assert camera.made <= len(seen) + most + 1  # the one in its hands
    assert seen == list(range(300))


def test_of_a_camera_the_newest_frame_wins() -> None:
    camera = _Camera(300, live=True)
    with Feed(camera, Excerpt()) as feed:
        assert camera.sent.wait(30)
        seen = [frame.index for frame in feed]
    assert seen == [299]
    assert feed.dropped == 299
    assert camera.made == 0  # what is dropped is not even converted


def test_what_breaks_off_is_said_after_the_frames_before() -> None:
    seen = []
    with Feed(_Camera(7, live=False, error=DeployError("cut")), Excerpt()) as feed:
        frames = iter(feed)
        for _ in range(7):
            seen.append(next(frames).index)
        with pytest.raises(DeployError, match="cut"):
            next(frames)
    assert seen == list(range(7))


def test_a_feed_that_is_stopped_gives_what_it_has_and_ends() -> None:
    camera = _Camera(10**6, live=False)
    with Feed(camera, Excerpt()) as feed:
        seen = []
        for frame in feed:
            seen.append(frame.index)
            if len(seen) == 3:
                feed.stop()
    assert 3 <= len(seen) <= 8
    assert camera.read < 20


def test_a_reader_that_fails_is_not_the_end_of_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(_Camera):
        def _picture(self) -> Decoded:
            raise ZeroDivisionError

    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with Feed(Wrong(3, live=False), Excerpt()) as feed, pytest.raises(DeployError, match="its reader failed"):
        list(feed)
