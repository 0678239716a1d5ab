"""Sources that do not wait for the engine: the newest frame wins, and who was passed over is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from engines.errors import DeployError, without_secrets
from engines.images.videos import is_stream, stream_name
from engines.segmenter import open_segmenter
from engines.video import av_read
from engines.video.report import VideoOptions
from engines.video.run import run_video

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import jpeg, labels, pictures, times, write  # noqa: E402
from tests.engines.video.servers import serving, transport_stream  # noqa: E402
from tests.engines.video.test_command import names  # noqa: E402

ROOT = Path(deploy.__file__).parent
FPS, COUNT = 50.0, 60


@pytest.mark.parametrize("kind", ["tcp", "rtsp"])
def test_a_camera_that_is_faster_than_the_engine(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each frame is told by its grey; an engine that takes 60 ms sees a third of 50 a second at most, and the last."""
    greys = [np.full((64, 96, 3), 4 * index + 8, np.uint8) for index in range(COUNT)]
    seen: list[int] = []
    with (
        serving(transport_stream(greys, tmp_path), FPS, kind=kind) as url,
        open_segmenter(tiny_bundle) as (segmenter, _),
    ):
        start = segmenter.start

        def slow(image: Any, *rest: Any) -> Any:
            seen.append(round((float(image.mean()) - 8) / 4))
            time.sleep(0.06)
            return start(image, *rest)

        monkeypatch.setattr(segmenter, "start", slow)
        options = VideoOptions(overlay=True, reconnect=0)  # where it hangs up is the end
        report = run_video(segmenter, url, tmp_path / "out" / "yard.labels.mkv", options)
    assert report.live
    assert report.frames == len(seen) == len(labels(tmp_path / "out" / "yard.labels.mkv"))
    assert report.frames > 1
    assert report.dropped > 0
    assert COUNT - 1 <= report.frames + report.dropped <= COUNT  # RTP does not say that the last one is whole
    assert seen == sorted(set(seen))
    assert seen[-1] >= COUNT - 2  # not one that waited
    assert 60 <= report.latency_ms["p50"] <= report.latency_ms["p95"]
    moments = times(tmp_path / "out" / "yard.labels.mkv")
    assert [moment - moments[0] for moment in moments] == pytest.approx(
        [(index - seen[0]) / 25 for index in seen], abs=2e-3
    )
    assert "dropped for newer ones" in str(report)


def test_so_many_seconds_of_a_camera(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(transport_stream(pictures(100), tmp_path), 25) as url:
        argv = ["run", str(tiny_bundle), url, "-o", str(tmp_path / "out"), "--seconds", "1"]
        assert deploy.main(argv) == 0
    (name,) = names(tmp_path / "out")
    assert name.startswith("127_0_0_1_")
    assert name.endswith("_yard.labels.mkv")
    assert 0 < times(tmp_path / "out" / name)[-1] < 1.01
    assert "frame(s) of 96x64" in capsys.readouterr().out


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_the_end_of_a_camera(tiny_bundle: Path, tmp_path: Path) -> None:
    """Nothing is missing then: exit code 0."""
    out = tmp_path / "out"
    with serving(transport_stream(pictures(60) * 10, tmp_path), 25) as url:
        command = [sys.executable, str(ROOT / "deploy.py"), "run", str(tiny_bundle), url, "-o", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 60
        while not any(out.glob(".edgeseg-*.mkv")):  # begun with the first frame
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "stopped; its files are complete until there" in printed
    (path,) = out.iterdir()
    assert f" {len(labels(path))} frame(s)" in printed


def test_a_pipe_is_read_to_its_end_and_waits(tiny_bundle: Path, tmp_path: Path) -> None:
    """``ffmpeg … | run``: who writes waits for the engine, and no frame is dropped."""
    pipe, out = tmp_path / "pipe", tmp_path / "out"
    write(tmp_path / "clip.mkv", pictures(30))
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes((tmp_path / "clip.mkv").read_bytes()))
    writer.start()
    assert deploy.main(["run", str(tiny_bundle), str(pipe), "-o", str(out)]) == 0
    writer.join(30)
    assert len(labels(out / "pipe.labels.mkv")) == 30


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_nobody_writes_into_the_pipe(tiny_bundle: Path, tmp_path: Path) -> None:
    """FFmpeg waits in the system then, and gives up with an error of its own."""
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, str(ROOT / "deploy.py"), "run", str(tiny_bundle), str(tmp_path / "pipe")]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "out")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    time.sleep(3)  # at any time it is the same; later than this it is in the open
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted; nothing half-written is left\n"
    assert names(tmp_path / "out") == []


def test_what_cannot_be_reached_is_one_line_without_its_password(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("rtsp://me:secret@127.0.0.1:1/yard", "tcp://127.0.0.1:1/street"):
        assert deploy.main(["run", str(tiny_bundle), url, "-o", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().out
    assert "skipped rtsp://127.0.0.1:1/yard: video rtsp://127.0.0.1:1/yard: FFmpeg says: Connection refused" in printed
    assert "secret" not in printed
    assert names(tmp_path / "out") == []


def test_nothing_that_is_written_has_a_secret_of_an_address(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of one that is read and lost, of one that refuses, and of one that is no video; FFmpeg's own words, too."""
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    words = ["run", str(tiny_bundle), "-o", str(out), "--log", str(log), "--reconnect", "0.1", "--json"]
    with serving([jpeg(picture) for picture in pictures(3)], 25, kind="http") as url:
        live = url.replace("//", "//me:secret@") + "?key=secret"
        assert deploy.main([*words, live, "http://me:secret@127.0.0.1:1/yard?sig=secret"]) == 2
    for text in ("s3://me:secret@bucket/a.tif?sig=secret", "/vsicurl/http://127.0.0.1:1/a.tif?sig=secret"):
        assert deploy.main([*words, text]) == 2
    printed = capfd.readouterr()
    (name,) = names(out)
    everything = printed.out + printed.err + log.read_text() + name
    assert "secret" not in everything
    for part in ("yard?key=***", ":1/yard?sig=***", "s3://bucket/a.tif?sig=***: is", ":1/a.tif?sig=***: "):
        assert part in everything


def test_what_is_no_camera_is_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["run", str(tiny_bundle), "/dev/null", "-o", str(tmp_path / "out")]
    if not any("v4l2" in kinds.split(",") for kinds in av.formats_available):
        pytest.skip("this FFmpeg has no v4l2")
    assert deploy.main(words) == 2
    assert "/dev/null: FFmpeg says: Inappropriate ioctl for device; it is no camera" in capsys.readouterr().out
    monkeypatch.setattr(av_read, "_V4L2", "v4l9")
    assert deploy.main(words) == 2
    assert "/dev/null: got an FFmpeg without v4l9, expected it for a camera; PyAV's wheels" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["-", "/dev/stdin"])
def test_a_standard_input_that_is_nothing_is_named(tiny_bundle: Path, tmp_path: Path, text: str) -> None:
    command = [sys.executable, deploy.__file__, "run", str(tiny_bundle), text, "-o", str(tmp_path / "out")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"input {text}: standard input is /dev/null, expected a video; pipe one into it" in done.stderr


def test_two_streams_of_one_name_are_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rtsp://a/yard", "tcp://me:secret@a/yard", "--seconds", "1"]
    assert deploy.main(["run", str(tiny_bundle), *words, "-o", str(tmp_path)]) == 2
    assert "inputs rtsp://a/yard and tcp://a/yard: both would be written to a_yard" in capsys.readouterr().err
    pipelines = [f"gst:v4l2src device=/dev/video{index} ! jpegdec" for index in range(2)]
    assert deploy.main(["run", str(tiny_bundle), *pipelines, "-o", str(tmp_path)]) == 2
    assert "gstreamer; run them into two folders, or name the first element of each pipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtsp://me:secret@10.0.0.5:554/yard?x=1", "10_0_0_5_554_yard"),
        ("rtsp://me:se@secret@cam/yard", "cam_yard"),
        ("rtsp://me:se/secret@cam/yard", "cam_yard"),
        ("rtsp://me:it's+secret@cam/yard", "cam_yard"),
        ("rtsp://me:my secret@cam/yard", "cam_yard"),
        ("https://cam/yard?token=it's-secret&b=1", "cam_yard"),
        ("rtsp://cam:554/yard@home", "cam_554_yard_home"),
        ("https://cam/yard/live?channel=1&token=secret%3D", "cam_yard_live"),
        ("https://cam/yard?secret", "cam_yard"),
        ("srt://cam:9000?mode=caller&passphrase=secret", "cam_9000"),
        ("gst:rtspsrc location=rtsp://cam/yard user-id=me user-pw=secret ! decodebin", "gstreamer"),
        (
            "gst:souphttpsrc location='http://cam/yard?key=secret' extra-headers=\"h,Key=my secret\" ! x",
            "gstreamer",
        ),
        ("gst:rtsp://me:secret@cam/yard?token=secret", "cam_yard"),
        ("gst:v4l2src device=/dev/video0 ! videoconvert", "gstreamer"),
        ("gst:rtsp://cam/live", "cam_live"),
        ("gst:nvarguscamerasrc sensor-id=1 name=left ! nvvidconv name=x", "left"),
        ("gst:rtspsrc user-name=me username=secret name=../up ! decodebin name=x", "gstreamer"),
        ("udp://@:5000", "5000"),
    ],
)
def test_streams_by_name(text: str, name: str) -> None:
    assert is_stream(text)
    assert stream_name(text) == name
    shown = without_secrets(text)
    assert "secret" not in shown
    assert "/yard" in shown or "yard" not in text
    assert without_secrets(f"video {shown}: it says: {text}") == f"video {shown}: it says: {shown}"
    assert str(DeployError(f"got {text}: no")) == f"got {shown}: no"
    assert not any(map(is_stream, ("a.mp4", "C:/a.mp4", "/dev/video0", "file:///a.mp4")))


def test_properties_that_only_sound_like_secrets_are_shown() -> None:
    text = "gst:x keyframe=1 monkey=2 author=3 pbkeylen=16 user_pw=a api-key=b keys=c"
    assert without_secrets(text) == "gst:x keyframe=1 monkey=2 author=3 pbkeylen=16 user_pw=*** api-key=*** keys=***"
