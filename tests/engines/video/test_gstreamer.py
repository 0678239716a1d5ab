"""The reader for a Jetson's decoder, on this machine's own: beside FFmpeg's frames of the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import jpeg, labels, pictures, write  # noqa: E402
from tests.engines.video.servers import serving  # noqa: E402

ROOT = Path(__file__).parents[3]
SYSTEM = "/usr/lib/python3/dist-packages"  # where Debian's python3-gi lies, outside of any environment
READ = """
import json, sys
import numpy as np
from engines.errors import DeployError
from engines.video.open import open_video

found = []
for source in sys.argv[1:]:
    try:
        with open_video(source, reconnect=0.5) as video:
            frames = list(video.frames())
            other = frames
            if source.endswith("mp4"):
                with open_video(source.removeprefix("gst:")) as file:
                    other = list(file.frames())
            away = [np.abs(a.picture.pixels.astype(int) - b.picture.pixels).mean() for a, b in zip(frames, other)]
            times = [float(abs(a.time - b.time)) for a, b in zip(frames, other)]
            info = video.info
        moments = [float(frame.time) for frame in frames]
        found.append([len(frames), len(other), info.width, info.height, info.live, max(away), max(times), moments])
    except DeployError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SYSTEM}"}
    return subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def gstreamer() -> None:
    there = "import gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst; Gst.init(None); "
    if _python(
        there + "assert Gst.ElementFactory.find('avdec_mpeg4') and Gst.ElementFactory.find('qtdemux')"
    ).returncode:
        pytest.skip("no GStreamer with PyGObject and its libav and good plugins for this Python")


@pytest.mark.usefixtures("gstreamer")
def test_files_cameras_and_what_is_neither(tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", pictures(12), codec="mpeg4")
    write(tmp_path / "turned.mp4", pictures(5), codec="mpeg4", turn=90)
    (tmp_path / "junk.mp4").write_bytes(bytes(range(256)) * 20)
    sources = [f"gst:{tmp_path}/{name}.mp4" for name in ("clip", "turned", "junk")]
    for index, picture in enumerate(pictures(3)):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    sources += ["gst:videotestsrc is-live=true num-buffers=8 ! video/x-raw,width=97,height=65", "gst:nonsense ! x"]
    sources += [f"gst:multifilesrc location={tmp_path}/%d.png start-index=0 stop-index=2 ! pngdec"]
    with serving([jpeg(pictures(1)[0])] * 5, 25, kind="http") as url:
        sources.append(f"gst:souphttpsrc is-live=true location={url} ! multipartdemux ! jpegdec")
        done = _python(READ, *sources)
    assert done.returncode == 0, done.stderr
    clip, turned, junk, camera, nonsense, stills, lost = json.loads(done.stdout)
    found: Any
    for found, count, size in ((clip, 12, [96, 64]), (turned, 5, [64, 96])):
        assert found[:5] == [count, count, *size, False]
        assert found[5] < 6  # chroma is enlarged otherwise; another frame's is 60 away
        assert found[6] < 1e-6
    assert camera[:5] == [8, 8, 97, 65, True]
    assert stills[:5] == [3, 3, 96, 64, False]
    assert stills[7] == [0, 0.04, 0.08]  # where nothing has a time
    assert "lost (its other side ended it), and not back within 0.5 s: GStreamer says: " in lost
    assert "GStreamer says: " in junk
    assert 'GStreamer says: no element "nonsense"' in nonsense


@pytest.mark.usefixtures("gstreamer")
def test_several_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    """As two cameras of a Jetson; their files are called as their first elements are."""
    given = [("left", 5, (48, 32)), ("right", 7, (64, 48))]
    pipelines = [f"gst:videotestsrc name={name} num-buffers={count} ! video/x-raw,width={size[0]},height={size[1]}"
                 for name, count, size in given]  # fmt: skip
    words = ["run", str(tiny_bundle), *pipelines, "-o", str(tmp_path / "out")]
    done = _python("import sys, deploy; sys.exit(deploy.main(sys.argv[1:]))", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, count, (width, height) in given:
        found = labels(tmp_path / "out" / f"{name}.labels.mkv")
        assert [each.shape for each in found] == count * [(height, width)]


def test_without_it_what_to_install_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ, "gst:a.mp4"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert "apt-get install python3-gi" in found or "GStreamer says: " in found
