"""Files whose name says nothing of what is in them: standard input, descriptors, files without an ending."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy
from engines.images.videos import is_video
from tests.conftest import ROOT

pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import decoded, pictures, write


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("matroska", "ffv1"), ("webm", "vp9"), ("mp4", "mpeg4"), ("mov", "mpeg4"), ("3gp", "mpeg4"), ("avi", "mpeg4"),
     ("mpegts", "mpeg2video"), ("mpeg", "mpeg1video"), ("vob", "mpeg2video"), ("ogg", "vp8"), ("asf", "msmpeg4"),
     ("flv", "flv"), ("nut", "ffv1"), ("yuv4mpegpipe", "wrapped_avframe"), ("ivf", "vp9"), ("mxf", "mpeg2video")],
)  # fmt: skip
def test_what_ffmpeg_writes_is_a_video(kind: str, codec: str, tmp_path: Path) -> None:
    write(tmp_path / "clip", pictures(4), codec=codec, format=kind)
    assert is_video(tmp_path / "clip")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "GIF", "AVIF", "JPEG2000"])
def test_what_pillow_writes_is_none(kind: str, tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "picture", format=kind)
    assert not is_video(tmp_path / "picture")


@pytest.mark.parametrize("content", [b"", b"G", b"GIF89a", bytes(400), b"words"])
def test_what_is_nothing_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert not is_video(tmp_path / "file")
    assert not is_video(tmp_path)
    assert not is_video(tmp_path / "none")


def test_a_file_on_standard_input_or_a_descriptor_is_what_it_holds(tiny_bundle: Path, tmp_path: Path) -> None:
    shown = pictures(3)
    write(tmp_path / "clip.mkv", shown)
    Image.fromarray(shown[0]).save(tmp_path / "picture.png")
    right = tmp_path / "right"
    command = ["run", str(tiny_bundle), str(tmp_path / "clip.mkv"), str(tmp_path / "picture.png"), "-o", str(right)]
    assert deploy.main(command) == 0
    for source, target, named in (("clip.mkv", "clip.labels.mkv", "labels.mkv"), ("picture.png", "picture.png", "png")):
        with (tmp_path / source).open("rb") as file:
            own = f"/dev/fd/{file.fileno()}"
            words = [sys.executable, "deploy.py", "run", tiny_bundle, "-", own, "-o", tmp_path / named]
            done = subprocess.run(
                words, cwd=ROOT, stdin=file, pass_fds=[file.fileno()], capture_output=True, check=False
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        written = sorted(os.listdir(tmp_path / named))
        assert written == sorted([f"stdin.{named}", f"{Path(own).name}.{named}"])
        for name in written:
            if named == "png":
                assert (tmp_path / named / name).read_bytes() == (right / target).read_bytes()
            else:
                pairs = zip(*(decoded(path, "gray") for path in (tmp_path / named / name, right / target)), strict=True)
                assert all(one[0] == other[0] and np.array_equal(one[1], other[1]) for one, other in pairs)


def test_what_a_pipe_holds_is_a_video_and_a_cluster_does_not_see_it(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "picture.png")
    command = [sys.executable, "deploy.py", "run", str(tiny_bundle), "-", "-o", str(tmp_path / "out")]
    with (tmp_path / "picture.png").open("rb") as file:
        done = subprocess.run([*command, "--ray"], cwd=ROOT, stdin=file, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: --ray: /dev/stdin is this process's own, which workers do not see; run it without it\n"
    )
    content = (tmp_path / "picture.png").read_bytes()
    assert subprocess.run(command, cwd=ROOT, input=content, capture_output=True, check=False).returncode == 0
    assert os.listdir(tmp_path / "out") == ["stdin.labels.mkv"]
