"""Several cameras in one run: each has its files, its drops and its end, and none waits for another."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from engines.errors import DeployError, GpuLostError
from engines.images.videos import is_open_ended
from engines.segmenter import Segmenter, open_segmenter
from engines.video import redial
from engines.video.folder import run_videos
from engines.video.report import VideoOptions, VideoReport

av = pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")

from tests.engines.video.clips import Array, decoded, labels, pictures, times, write  # noqa: E402
from tests.engines.video.servers import serving, transport_stream  # noqa: E402
from tests.engines.video.test_command import masks_of, names  # noqa: E402

ROOT = Path(deploy.__file__).parent
Json = dict[str, Any]


def camera(
    stack: ExitStack, folder: Path, count: int, size: tuple[int, int] = (64, 96), fps: float = 25, kind: str = "tcp"
) -> str:  # fmt: skip
    """The URL of one that hangs up after so many frames."""
    folder.mkdir()
    return stack.enter_context(serving(transport_stream(pictures(count, *size), folder), fps, kind=kind))


class Silent:
    """Somebody who takes calls and says nothing, until told to hang up."""

    def __init__(self, server: socket.socket) -> None:
        self._server, self._calls = server, list[socket.socket]()
        self.url = f"tcp://127.0.0.1:{server.getsockname()[1]}/gate"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                self._calls.append(self._server.accept()[0])

    def hang_up(self) -> None:
        with suppress(OSError):  # again
            self._server.shutdown(socket.SHUT_RDWR)
        for call in self._calls:
            call.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = Silent(server)
        yield found
        found.hang_up()
    for thread in threading.enumerate():  # of this process; none is left to hang in FFmpeg
        if thread.name == "edgeseg-video":
            thread.join(30)


def run(bundle: Path, *words: Any, code: int, capsys: pytest.CaptureFixture[str], log: Path) -> tuple[Json, list[Json]]:
    """The report, and a line for each source in the order in which they ended."""
    capsys.readouterr()
    assert deploy.main(["run", str(bundle), *map(str, words), "--json", "--log", str(log)]) == code
    return json.loads(capsys.readouterr().out), [json.loads(line) for line in log.read_text().splitlines()]


def test_cameras_of_different_sizes_and_rates(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is written of each are, in order and at their times, the labels that its frames have as images."""
    out, kinds = tmp_path / "out", {"fast": ((64, 96), 50, 80, "tcp"), "slow": ((80, 130), 20, 40, "rtsp")}
    with ExitStack() as stack:
        urls = {
            name: camera(stack, tmp_path / name, count, size, fps, kind)
            for name, (size, fps, count, kind) in kinds.items()
        }
        words = [*urls.values(), "-o", out, "--reconnect", 0, "--overlay"]
        report, lines = run(tiny_bundle, *words, code=0, capsys=capsys, log=tmp_path / "log.jsonl")
    assert [each["input"] for each in report["videos"]] == list(urls.values())
    assert {line["input"]: line["frames"] for line in lines} == {
        each["input"]: each["frames"] for each in report["videos"]
    }
    for row, (name, (size, _, count, _)) in zip(report["videos"], kinds.items(), strict=True):
        found, moments = labels(Path(row["mask"])), times(Path(row["mask"]))
        masks = masks_of(tiny_bundle, [pixels for _, pixels in decoded(tmp_path / name / "sent.ts")], tmp_path / name)
        at = [[np.array_equal(mask, each) for mask in masks].index(True) for each in found]
        assert at == sorted(set(at))
        assert [moment - moments[0] for moment in moments] == pytest.approx(
            [(index - at[0]) / 25 for index in at], abs=2e-3
        )
        assert (row["live"], row["height"], row["width"]) == (True, *size)
        assert row["frames"] == len(found) > 1
        assert count - 2 <= row["frames"] + row["dropped"] <= count
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]
    assert len(names(out)) == 4


def test_one_that_is_gone_for_good_is_said_at_once_and_the_other_goes_on(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until Ctrl-C, five frames later."""
    monkeypatch.setattr(redial, "_FIRST", 0.2)
    found: dict[str, VideoReport | DeployError] = {}
    with open_segmenter(tiny_bundle) as (segmenter, _), ExitStack() as stack:
        stays, goes = camera(stack, tmp_path / "a", 600), camera(stack, tmp_path / "b", 20)
        after = list[Array]()

        def seen(image: Array) -> None:
            after.extend([image] if goes in found else [])
            if len(after) == 5:
                signal.raise_signal(signal.SIGTERM)

        _before_each(segmenter, monkeypatch, seen)
        targets = {url: tmp_path / f"{name}.labels.mkv" for name, url in (("a", stays), ("b", goes))}
        run_videos(segmenter, targets, VideoOptions(reconnect=0.3), None, found.__setitem__)
    assert list(found) == [goes, stays]
    first, second = found[stays], found[goes]
    assert isinstance(first, VideoReport)
    assert isinstance(second, VideoReport)
    assert (first.broken, first.stopped, second.stopped) == ("", True, False)
    assert "and not back within 0.3 s: FFmpeg says: Connection refused; the " in second.broken
    for report in (first, second):
        assert len(labels(Path(report.mask))) == report.frames > 0


def test_one_that_hangs_at_the_start_holds_up_nobody(tiny_bundle: Path, tmp_path: Path, silent: Silent) -> None:
    """Nor does one whose file cannot be written.  Files have an end, and are done before."""
    clip, found = tmp_path / "clip.mkv", dict[str, VideoReport | DeployError]()
    write(clip, pictures(3))
    (tmp_path / "full.labels.mkv" / "taken").mkdir(parents=True)
    with open_segmenter(tiny_bundle) as (segmenter, _), ExitStack() as stack:
        good, full = camera(stack, tmp_path / "a", 200), camera(stack, tmp_path / "b", 200)
        sources = {"silent": silent.url, "full": full, "good": good, "clip": str(clip)}

        def tell(source: str, outcome: VideoReport | DeployError) -> None:
            found[source] = outcome
            if good in found and full in found and source != silent.url:
                silent.hang_up()

        targets = {source: tmp_path / f"{name}.labels.mkv" for name, source in sources.items()}
        run_videos(segmenter, targets, VideoOptions(seconds=0.4), None, tell)
    first, *_, last = found
    assert (first, last) == (str(clip), silent.url)
    assert f"video {silent.url}: " in str(found[silent.url])
    assert f"{tmp_path}/full.labels.mkv" in str(found[full])
    for source in (good, str(clip)):
        report = found[source]
        assert isinstance(report, VideoReport)
        assert len(labels(Path(report.mask))) == report.frames > 0
    assert sorted(path.name for path in tmp_path.glob("*.mkv")) == [
        "clip.labels.mkv", "clip.mkv", "full.labels.mkv", "good.labels.mkv"
    ]  # fmt: skip


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_the_end_of_all_cameras(tiny_bundle: Path, tmp_path: Path, silent: Silent) -> None:
    """One that was not there yet is named, and not waited for."""
    out = tmp_path / "out"
    with ExitStack() as stack:
        urls = [camera(stack, tmp_path / name, 600) for name in "ab"]
        command = [sys.executable, str(ROOT / "deploy.py"), "run", str(tiny_bundle), silent.url, *urls, "-o", str(out)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 60
        while len([*out.glob(".edgeseg-*.mkv")]) < 2:  # begun with the first frame of each
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=10)  # FFmpeg would wait for 15 s
    assert process.returncode == 2, said
    assert printed.count("stopped; its files are complete until there") == 2
    assert f"skipped {silent.url}: not run: stopped before" in printed
    assert len(names(out)) == 2
    for path in out.iterdir():
        assert f" {len(labels(path))} frame(s)" in printed


def _before_each(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, seen: Callable[[Array], None]) -> None:
    """seen: called with each image that is to be labelled."""
    start = segmenter.start

    def wrapped(image: Array, *rest: Any) -> Any:
        seen(image)
        return start(image, *rest)

    monkeypatch.setattr(segmenter, "start", wrapped)


def _once_both_have(count: int, work: Callable[[], None]) -> Callable[[Array], None]:
    """Calls `work` once, when so many frames of each of two sizes were begun."""
    seen: dict[tuple[int, ...], int] = {}

    def see(image: Array) -> None:
        seen[image.shape] = seen.get(image.shape, 0) + 1
        if len(seen) == 2 and min(seen.values()) == count:
            seen.clear()
            work()

    return see


def _both(stack: ExitStack, folder: Path) -> list[str]:
    return [camera(stack, folder / name, 200, size) for name, size in (("a", (64, 96)), ("b", (80, 130)))]


def test_a_lost_gpu_ends_all_with_whole_files(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: Silent
) -> None:
    """Also one that nothing came of yet."""
    found: dict[str, Any] = {}

    def lose() -> None:
        raise GpuLostError("the GPU is gone")

    with open_segmenter(tiny_bundle) as (segmenter, _), ExitStack() as stack:
        urls = _both(stack, tmp_path)
        targets = {url: tmp_path / f"{index}.labels.mkv" for index, url in enumerate([*urls, silent.url])}
        _before_each(segmenter, monkeypatch, _once_both_have(3, lose))
        run_videos(segmenter, targets, VideoOptions(), None, found.__setitem__)
    assert isinstance(found[silent.url], GpuLostError)
    for url in urls:
        report = found[url]
        assert report.lost
        assert report.broken == f"the GPU is gone; the {report.frames} frame(s) until then are labelled"
        assert len(labels(Path(report.mask))) == report.frames >= 2
    assert not [*tmp_path.glob(".edgeseg-*")]


def test_a_second_ctrl_c_leaves_nothing_of_any(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed_twice() -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1.1)  # what comes within a second is one
        signal.raise_signal(signal.SIGTERM)

    with open_segmenter(tiny_bundle) as (segmenter, _), ExitStack() as stack:
        targets = {url: tmp_path / "out" / f"{i}.labels.mkv" for i, url in enumerate(_both(stack, tmp_path))}
        _before_each(segmenter, monkeypatch, _once_both_have(2, pressed_twice))
        with pytest.raises(KeyboardInterrupt):
            run_videos(segmenter, targets, VideoOptions(), None, lambda *_: None)
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("text", "endless"),
    [
        ("rtsp://cam/live.mp4", True),
        ("udp://@:5000", True),
        ("http://cam/video.mjpg?fps=5", True),
        ("http://cam/yard", True),
        ("https://cdn/live/yard.m3u8", True),
        ("https://store/clips/a.MP4?key=b", False),
        ("gst:rtsp://cam/yard", True),
        ("gst:clip.mp4", False),
        ("gst:https://store/a.mkv", False),
        ("gst:v4l2src device=/dev/video0 ! jpegdec", True),
        ("/dev/null", True),
        ("clip.mp4", False),
        ("-", False),  # a file of that name; standard input is /dev/stdin by then
    ],
)
def test_what_may_have_no_end(text: str, endless: bool) -> None:
    assert is_open_ended(text) is endless
