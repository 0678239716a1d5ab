"""Cameras and streams that break off and come back: one recording goes on, and what was lost is said."""

from __future__ import annotations

import http.server
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from engines.errors import DeployError
from engines.video import av_read, redial
from engines.video.frames import VideoFrame
from engines.video.open import open_video

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import Array, jpeg, pictures, times  # noqa: E402
from tests.engines.video.servers import serving, transport_stream  # noqa: E402

ROOT = Path(deploy.__file__).parent
AWAY = 0.7  # seconds


def _greys(first: int, count: int) -> list[Array]:
    """Each is told by its grey."""
    return [np.full((64, 96, 3), 8 * index + 8, np.uint8) for index in range(first, first + count)]


def _number(picture: Array) -> int:
    return round((float(picture.mean()) - 8) / 8)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redial, "_FIRST", 0.2)
    monkeypatch.setattr(redial, "_STEADY", 0.1)
    monkeypatch.setattr(av_read, "_STALLED", 1.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("kind", ["rtsp", "http"])
def test_a_camera_that_comes_back_goes_on(tmp_path: Path, kind: str) -> None:
    """Its clock begins anew, and the gap is ours."""
    pieces = [
        [jpeg(each) for each in _greys(first, 12)] if kind == "http" else transport_stream(_greys(first, 12), tmp_path)
        for first in (0, 12)
    ]
    said: list[str] = []
    with (
        serving(pieces[0], 25, pieces[1], kind=kind, away=AWAY) as url,
        open_video(url, reconnect=1.5, say=said.append) as video,
    ):
        frames: list[tuple[int, VideoFrame]] = []
        with pytest.raises(DeployError, match=r"and not back within 1\.5 s: FFmpeg says: Connection refused"):
            frames.extend((_number(frame.picture.pixels), frame) for frame in video.frames())
    numbers = [number for number, _ in frames]
    first = next(at for at, number in enumerate(numbers) if number >= 12)
    assert numbers == sorted(set(numbers))
    assert {*numbers} >= {*range(1, 11), *range(13, 23)}  # RTP does not say that the last one is whole
    assert [frame.index for _, frame in frames] == list(range(len(frames)))
    moments = [float(frame.time) for _, frame in frames]
    assert moments[first] - moments[first - 1] > AWAY
    if kind != "http":  # where frames have no times
        assert np.diff(moments[:first]) == pytest.approx(1 / 25, abs=1e-3)
        assert np.diff(moments[first:]) == pytest.approx(1 / 25, abs=1e-3)
    why = "FFmpeg says: Input/output error" if kind == "http" else "its other side ended it"
    lost, back = f"{url} is lost ({why}); dialled again for 1.5 s", f"{url} is back after"
    assert [re.sub(r"after \d\.\d s", "after", text) for text in said] == [lost, back, lost]


@pytest.mark.usefixtures("patient")
def test_a_recording_goes_on_in_its_files(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was away counts for `--seconds`."""
    pieces = [transport_stream(pictures(25), tmp_path)] * 2
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    with serving(pieces[0], 25, pieces[1], kind="rtsp", away=AWAY) as url:
        words = ["run", str(tiny_bundle), url, "-o", str(out), "--overlay", "--seconds", "4", "--log", str(log)]
        assert deploy.main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    (report,) = json.loads(printed.out)["videos"]
    (line,) = map(json.loads, log.read_text().splitlines())
    (track,), (overlay,) = out.glob("*.labels.mkv"), out.glob("*.overlay.mp4")
    moments = times(track)
    assert report["frames"] == line["frames"] == len(moments)
    assert times(overlay) == pytest.approx(moments, abs=5.01e-4)
    assert AWAY < max(np.diff(moments)) < moments[-1] < 4
    assert report["reconnects"] == line["reconnects"] == 1
    assert report["away_seconds"] == line["away_seconds"] > AWAY
    assert printed.err.index("yard is lost (") < printed.err.index("yard is back after ")


@pytest.mark.usefixtures("patient")
def test_a_camera_that_stays_away_or_comes_back_as_another_is_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What there was is labelled, in files that are whole."""
    first, second = (transport_stream(pictures(25, *size), tmp_path) for size in ((64, 96), (80, 128)))
    cases: list[tuple[list[Any], list[str], int, str]] = [
        ([], ["--reconnect", "0.3"], 2, "and not back within 0.3 s: FFmpeg says: Connection refused; the "),
        ([second], [], 2, "came back with frames of 128x80, expected 96x64 as before; run it again"),
        ([], ["--seconds", "1.5"], 0, "back 0 time(s)"),  # which ends the wait
    ]
    for index, (later, words, code, message) in enumerate(cases):
        out = tmp_path / str(index)
        with serving(first, 25, *later) as url:
            assert deploy.main(["run", str(tiny_bundle), url, "-o", str(out), *words]) == code
        assert message in capsys.readouterr().out
        (track,) = out.iterdir()
        assert 1 <= len(times(track)) <= 25


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_it_is_away(tiny_bundle: Path, tmp_path: Path) -> None:
    """Also while somebody takes the call who says nothing, as FFmpeg waits for then."""
    out = tmp_path / "out"
    with serving(transport_stream(pictures(25), tmp_path), 25, hangs=True) as url:
        command = [sys.executable, str(ROOT / "deploy.py"), "run", str(tiny_bundle), url, "-o", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "yard is lost (its other side ended it)" in process.stderr.readline()
        time.sleep(1.5)  # the first try is then under way
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=8)  # FFmpeg would wait for 15 s
    assert process.returncode == 0, said
    assert "back 0 time(s)" in printed
    (path,) = out.iterdir()
    assert f" {len(times(path))} frame(s)" in printed


@pytest.fixture
def web() -> Iterator[str]:
    """A server of one raw MJPEG of 12 pictures, as fast as it can, with or without saying how long it is."""
    data = b"".join(jpeg(each) for each in _greys(0, 12))

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            sized = self.path == "/sized.mjpeg"
            self.send_header(*(("Content-Length", str(len(data))) if sized else ("Transfer-Encoding", "chunked")))
            self.end_headers()
            self.wfile.write(data if sized else b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.usefixtures("patient")
def test_a_file_on_a_server_is_read_once(web: str) -> None:
    said: list[str] = []
    with open_video(f"{web}/sized.mjpeg", reconnect=3, say=said.append) as video:
        numbers = [_number(frame.picture.pixels) for frame in itertools.islice(video.frames(), 30)]
    assert numbers == [*range(12)]
    assert not video.info.live
    assert not said


@pytest.mark.usefixtures("patient")
def test_what_ends_at_once_each_time_is_given_up(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its returns neither renew the patience nor shorten the pause."""
    monkeypatch.setattr(redial, "_STEADY", 10.0)
    said: list[str] = []
    with open_video(f"{web}/endless.mjpeg", reconnect=1, say=said.append) as video:
        frames = itertools.islice(video.frames(), 200)
        with pytest.raises(DeployError, match=r"other side ended it\), and not back for as long as 10 s within 1 s"):
            assert list(frames) == []
    assert video.info.live
    assert sum("is back after" in text for text in said) == 3  # after 0.2, 0.6 and 1 s
