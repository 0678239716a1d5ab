"""The sound of a file: in the overlay as it was, at its place beside the pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import pictures  # noqa: E402
from tests.engines.video.test_command import run  # noqa: E402

SAMPLES = 16000  # a second


def _write(path: Path, sound: str, start: int = 0, seconds: int = 2) -> None:
    """Pictures and a rising tone.  start: seconds on the file's clock."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=25)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        video.codec_context.time_base = Fraction(1, 25)
        audio: Any = out.add_stream(sound, rate=SAMPLES)
        audio.layout, audio.bit_rate = "mono", 32_000
        for index, picture in enumerate(pictures(25 * seconds)):
            frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index + 25 * start, Fraction(1, 25)
            out.mux(video.encode(frame))
        tone = np.sin(np.linspace(0, 40, SAMPLES * seconds) ** 2).astype(np.float32)
        for begin in range(0, len(tone), 1024):
            heard = av.AudioFrame.from_ndarray(tone[None, begin : begin + 1024], format="fltp", layout="mono")
            heard.sample_rate, heard.pts = SAMPLES, begin + SAMPLES * start
            out.mux(audio.encode(heard))
        out.mux(video.encode())
        out.mux(audio.encode())


def _packets(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """(seconds, data) of a file's sound or pictures."""
    with av.open(str(path)) as file:
        stream = file.streams.best(kind)
        return [(float(p.pts * p.time_base), bytes(p)) for p in file.demux(stream) if p.pts is not None]


@pytest.mark.parametrize(
    ("name", "sound", "start"),
    [("a.mp4", "aac", 0), ("a.mkv", "aac", 7), ("a.mov", "pcm_s16le", 0), ("a.avi", "mp3", 0), ("a.ts", "aac", 3)],
)
def test_the_overlay_has_the_sound_of_its_file(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, sound: str, start: int
) -> None:
    """Not a byte of it is coded anew, and it is as far from the pictures as it was."""
    clip, out = tmp_path / name, tmp_path / "out"
    if sound == "mp3" and "libmp3lame" not in av.codecs_available:
        pytest.skip("this FFmpeg writes no MP3")
    _write(clip, {"mp3": "libmp3lame"}.get(sound, sound), start)
    report = run(tiny_bundle, clip, "-o", out, "--overlay", "--every", 2, capsys=capsys)["videos"][0]
    assert report["notes"] == []
    given, copied = _packets(clip, "audio"), _packets(out / "a.overlay.mp4", "audio")
    if name != "a.ts":  # where each packet begins with a header that MP4 has elsewhere
        assert b"".join(data for _, data in given).startswith(b"".join(data for _, data in copied))
    assert len(given) - 2 <= len(copied) <= len(given)
    before = given[0][0] - min(moment for moment, _ in _packets(clip, "video"))
    after = copied[0][0] - min(moment for moment, _ in _packets(out / "a.overlay.mp4", "video"))
    assert after == pytest.approx(before, abs=2e-3)
    assert copied[-1][0] - copied[0][0] == pytest.approx(given[len(copied) - 1][0] - given[0][0], abs=2e-3)
    with av.open(str(out / "a.labels.mkv")) as file:
        assert not file.streams.audio


def test_the_sound_ends_with_the_pictures(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "a.mp4", "aac")
    run(tiny_bundle, tmp_path / "a.mp4", "-o", tmp_path / "out", "--overlay", "--seconds", 1, capsys=capsys)
    moments = [moment for moment, _ in _packets(tmp_path / "out" / "a.overlay.mp4", "audio")]
    assert 0.9 < moments[-1] < 1


def test_damaged_sound_does_not_cost_the_pictures(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "a.ts", "aac")
    data = bytearray((tmp_path / "a.ts").read_bytes())
    rng = np.random.default_rng(0)
    for place in range(188 * 20, len(data), 188):
        if data[place + 1] & 0x1F == 1 and data[place + 2] == 1:  # packets of the second stream
            data[place + 20 : place + 60] = rng.bytes(40)
    (tmp_path / "a.ts").write_bytes(data)
    report = run(tiny_bundle, tmp_path / "a.ts", "-o", tmp_path / "out", "--overlay", capsys=capsys)["videos"][0]
    assert report["notes"] == ["a.overlay.mp4: some of its source's sound is damaged, and not in it"]
    assert len(_packets(tmp_path / "out" / "a.overlay.mp4", "video")) == report["frames"] == 50


def test_sound_that_an_mp4_cannot_hold_is_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "a.wmv", "wmav2")
    report = run(tiny_bundle, tmp_path / "a.wmv", "-o", tmp_path / "out", "--overlay", capsys=capsys)["videos"][0]
    assert report["notes"] == ["a.overlay.mp4 has no sound: an MP4 cannot hold that of its source as it is"]
    assert report["frames"] == 50
    assert _packets(tmp_path / "out" / "a.overlay.mp4", "video")
