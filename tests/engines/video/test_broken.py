"""Videos that break off, hold nothing, or are stopped: what there was is labelled, in files that are whole."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from engines.errors import DeployError, GpuLostError
from engines.segmenter import Segmenter, open_segmenter
from engines.video.folder import run_videos
from engines.video.report import VideoOptions, VideoReport
from engines.video.run import run_video

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from av.stream import Disposition  # noqa: E402

from tests.engines.video.clips import decoded, labels, pictures, write  # noqa: E402
from tests.engines.video.test_command import masks_of, names  # noqa: E402

ROOT = Path(deploy.__file__).parent


def _sound(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("aac", rate=16000)
        stream.layout = "mono"
        if cover:
            picture: Any = out.add_stream("png")
            picture.height, picture.width, picture.pix_fmt = 64, 96, "rgb24"
            picture.disposition = Disposition.attached_pic
            out.mux(picture.encode(av.VideoFrame.from_ndarray(pictures(1)[0], format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("cut.mkv", "ffv1", {}),
        ("cut.mp4", "libx264", {"movflags": "faststart"}),
        ("cut.mp4", "mpeg4", {"movflags": "faststart"}),
        ("cut.avi", "mjpeg", {}),  # whose length FFmpeg then takes from the bytes that there are
    ],
)
def test_a_truncated_file_is_labelled_until_there_and_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, codec: str,
    container: dict[str, str],
) -> None:  # fmt: skip
    clip, out = tmp_path / name, tmp_path / "out"
    kind = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    write(clip, pictures(40), codec=codec, kind=kind, container=container, options={"g": "1"})
    whole = [pixels for _, pixels in decoded(clip)]
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 6 // 10])
    assert deploy.main(["run", str(tiny_bundle), str(clip), "-o", str(out), "--overlay"]) == 2
    text = capsys.readouterr().out
    found = labels(out / "cut.labels.mkv")
    assert 8 < len(found) < 40
    assert f"skipped {clip}: video {clip}: damaged or incomplete: " in text
    assert name == "cut.avi" or "breaks off after 0." in text
    assert f"{'' if name == 'cut.avi' else 'of 1.60 s'}; the {len(found)} frame(s) until then are labelled" in text
    assert all(map(np.array_equal, found, masks_of(tiny_bundle, whole[: len(found)], tmp_path)))
    assert len(decoded(out / "cut.overlay.mp4")) == len(found)


def test_a_file_that_was_damaged_in_the_middle_is_read_to_its_end(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = tmp_path / "hit.mkv", tmp_path / "out"
    write(clip, pictures(30), options={"g": "1", "level": "3", "slicecrc": "0"})
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    clip.write_bytes(data)
    assert deploy.main(["run", str(tiny_bundle), str(clip), "-o", str(out)]) == 2
    assert "damaged or incomplete" in capsys.readouterr().out
    assert 10 < len(labels(out / "hit.labels.mkv")) <= 30


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("junk.mp4", lambda path: path.write_bytes(b"no video" * 100), "no video, damaged or incomplete"),
        ("empty.mp4", lambda path: path.touch(), "no video, damaged or incomplete"),
        ("sound.mp4", _sound, "got audio, expected a video"),
        ("song.mp4", lambda path: _sound(path, cover=True), "got a cover picture, audio, expected a video"),
        ("none.mkv", lambda path: write(path, pictures(1)[:0] or pictures(1), times=[0]), ""),
        ("pointer.mp4", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    ],
)
def test_what_holds_no_picture_is_refused_and_the_others_are_done(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, make: Any, message: str
) -> None:
    clip, good, out = tmp_path / name, tmp_path / "good.mkv", tmp_path / "out"
    make(clip)
    write(good, pictures(2))
    if name == "none.mkv":  # a header, and not one frame
        data = clip.read_bytes()
        clip.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])
        message = "got no frame that can be decoded"
    assert deploy.main(["run", str(tiny_bundle), str(clip), str(good), "-o", str(out)]) == 2
    assert message in capsys.readouterr().out
    assert names(out) == ["good.labels.mkv"]


def test_of_several_videos_in_a_file_one_is_taken_and_a_cover_is_none(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = tmp_path / "two.mkv", tmp_path / "out"
    small, large = pictures(2), pictures(2, 128, 192)
    with av.open(str(clip), "w") as file:
        streams: list[Any] = [file.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream, shown in zip(streams, (small, large), strict=True):
            stream.height, stream.width = shown[0].shape[:2]
            stream.pix_fmt = "yuv420p"
        for index in range(2):
            for stream, shown in zip(streams, (small, large), strict=True):
                frame = av.VideoFrame.from_ndarray(shown[index], format="rgb24").reformat(format="yuv420p")
                frame.pts = index
                file.mux(stream.encode(frame))
    assert deploy.main(["run", str(tiny_bundle), str(clip), "-o", str(out)]) == 0
    assert "has 2 videos; the one that FFmpeg prefers was taken" in capsys.readouterr().out
    with av.open(str(clip)) as file:
        best = file.streams.best("video")
        assert labels(out / "two.labels.mkv")[0].shape == (best.height, best.width)


def test_a_video_ends_where_its_frames_change_their_size(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = tmp_path / "joined.ts", tmp_path / "out"
    for name, size in (("a.ts", (64, 96)), ("b.ts", (80, 128))):
        write(tmp_path / name, pictures(4, *size), codec="mpeg2video", options={"bf": "0"})
    clip.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    assert deploy.main(["run", str(tiny_bundle), str(clip), "-o", str(out)]) == 2
    assert "got a frame of 128x80, expected 96x64 as before; cut it there" in capsys.readouterr().out
    assert len(labels(out / "joined.labels.mkv")) >= 3  # of four, the last of which the decoder may hold back


def _failing(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, at: int, error: DeployError) -> None:
    start, count = segmenter.start, 0

    def wrapped(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise error
        return start(*args)

    monkeypatch.setattr(segmenter, "start", wrapped)


def test_a_lost_gpu_keeps_what_was_labelled(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing after it runs."""
    for name in "ab":
        write(tmp_path / f"{name}.mkv", pictures(10))
    targets = {str(tmp_path / f"{name}.mkv"): tmp_path / "out" / f"{name}.labels.mkv" for name in "ab"}
    with open_segmenter(tiny_bundle) as (segmenter, _):
        _failing(segmenter, monkeypatch, 5, GpuLostError("the GPU is gone"))
        found: dict[str, VideoReport | DeployError] = {}
        run_videos(segmenter, targets, VideoOptions(overlay=True), None, found.__setitem__)
    first, second = found.values()
    assert isinstance(first, VideoReport)
    assert first.lost
    assert first.broken == "the GPU is gone; the 4 frame(s) until then are labelled"
    assert isinstance(second, GpuLostError)
    assert names(tmp_path / "out") == ["a.labels.mkv", "a.overlay.mp4"]
    assert len(labels(tmp_path / "out" / "a.labels.mkv")) == 4 == len(decoded(tmp_path / "out" / "a.overlay.mp4"))


def test_what_is_left_out_when_it_is_there_is_whole(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run with --skip-existing that was stopped, the same run again does the rest of the frames, too."""
    write(tmp_path / "a.mkv", pictures(10))
    target, options = tmp_path / "out" / "a.labels.mkv", VideoOptions(overlay=True, skip_existing=True)
    with open_segmenter(tiny_bundle) as (segmenter, _):
        start = segmenter.start
        _failing(segmenter, monkeypatch, 5, GpuLostError("the GPU is gone"))
        with pytest.raises(GpuLostError):
            run_video(segmenter, str(tmp_path / "a.mkv"), target, options)
        assert names(tmp_path / "out") == []

        def stopped(*args: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return start(*args)

        monkeypatch.setattr(segmenter, "start", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_video(segmenter, str(tmp_path / "a.mkv"), target, options)
        assert names(tmp_path / "out") == []


def test_a_full_disk_leaves_nothing_half_written(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was there stays."""
    clip, out = tmp_path / "clip.mkv", tmp_path / "out"
    write(clip, pictures(60))
    out.mkdir()
    (out / "clip.labels.mkv").write_bytes(b"of an earlier run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        code = deploy.main(["run", str(tiny_bundle), str(clip), "-o", str(out), "--overlay"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert code == 2
    assert re.search(r"output \S+/out/clip\.\w+\.(mkv|mp4): cannot be written: File too large", capsys.readouterr().out)
    assert names(out) == ["clip.labels.mkv"]
    assert (out / "clip.labels.mkv").read_bytes() == b"of an earlier run"


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_closes_files_that_play(tiny_bundle: Path, tmp_path: Path, how: signal.Signals) -> None:
    clip, out = tmp_path / "long.mkv", tmp_path / "out"
    write(clip, pictures(50) * 40, options={"g": "50"})
    command = [sys.executable, str(ROOT / "deploy.py"), "run", str(tiny_bundle), str(clip), "-o", str(out), "--overlay"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not any(path.stat().st_size > 10_000 for path in out.glob(".edgeseg-*.mkv")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(how)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped; its files are complete until there" in printed
    assert names(out) == ["long.labels.mkv", "long.overlay.mp4"]
    count = len(labels(out / "long.labels.mkv"))
    assert f" {count} frame(s) of 96x64" in printed
    assert 0 < count < 2000
    assert len(decoded(out / "long.overlay.mp4")) == count
