"""The JSON lines of `run --log`: what they say, and that each is whole whatever happens to the process or the disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deploy
from engines.errors import DeployError, GpuLostError
from engines.report.lines import told
from engines.report.rows import InputRow, RunReport
from engines.video.report import VideoReport
from tests.conftest import ROOT
from tests.engines.rasters.maps import write

_KINDS = ("image", "raster", "video")
OWN = {"time", "worker", "status", "kind", "input", "mask", "error", "note"}


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def _run(*argv: object) -> int:
    return deploy.main([str(word) for word in argv])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def test_every_input_has_a_line(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    log, out = tmp_path / "logs" / "run.jsonl", tmp_path / "out"
    assert _run("run", tiny_bundle, photos, "-o", out, "--log", log, "--json") == 2
    report, lines = json.loads(capsys.readouterr().out), _lines(log)
    by_name = {Path(line["input"]).name: line for line in lines}
    assert {name: line["status"] for name, line in by_name.items()} == {
        "0.png": "done", "1.png": "done", "2.png": "done", "3.png": "done", "bad.png": "failed",
    }  # fmt: skip
    assert all(line.keys() >= OWN and line["kind"] == "image" for line in lines)
    for image in report["images"]:  # a line is what the report says of the image
        assert {key: by_name[Path(image["input"]).name][key] for key in image} == image
        assert Path(image["mask"]).exists()
    assert by_name["bad.png"]["error"] == report["failed"][str(photos / "bad.png")]
    assert _run("run", tiny_bundle, photos, "-o", out, "--log", log, "--skip-existing") == 2
    assert sorted(line["status"] for line in _lines(log)[5:]) == ["failed", *["skipped"] * 4]


def test_lines_on_standard_output_are_alone_there(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    name = os.fsencode(photos) + b"/caf\xe9.png"
    os.link(photos / "0.png", name)
    command = [sys.executable, "deploy.py", "run", tiny_bundle, photos, "-o", tmp_path / "out", "--log", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 5
    assert os.fsencode(name) in {os.fsencode(line["input"]) for line in lines}
    assert b"5 image(s)" in done.stderr


@pytest.mark.parametrize("options", [("--log", "-", "--json"), ("--log", "-", "--device", "all")], ids=str)
def test_lines_and_report_do_not_mix(options: tuple[str, ...], photos: Path, capsys: Any) -> None:
    assert _run("run", "bundle", photos, "-o", "out", *options) == 2
    assert capsys.readouterr().err.startswith("error: --log - with --")


def test_another_file_is_not_appended_to(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    before = (photos / "0.png").read_bytes()
    assert _run("run", tiny_bundle, photos, "-o", tmp_path / "out", "--log", photos / "0.png") == 2
    assert "does not hold JSON lines; name another file" in capsys.readouterr().err
    assert (photos / "0.png").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_a_raster_that_shards_share_has_a_line_of_each(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="rasterio, which reads rasters, is not installed")
    write(tmp_path / "map.tif", np.random.default_rng(0).integers(1, 256, (70, 130, 3), np.uint8))
    log = tmp_path / "run.jsonl"
    for shard in ("1/2", "2/2"):
        words = ("run", tiny_bundle, tmp_path / "map.tif", "-o", tmp_path / "out", "--log", log, "--shard", shard)
        assert _run(*words) == 0
    first, last = _lines(log)
    assert (first["kind"], first["status"], last["status"]) == ("raster", "part", "done")
    assert (last["width"], last["height"], last["mask"]) == (130, 70, str(tmp_path / "out" / "map.tif"))


def test_a_killed_run_leaves_whole_lines_and_goes_on(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    for index in range(4, 400):
        os.link(photos / f"{index % 4}.png", photos / f"{index}.png")
    log, out = tmp_path / "run.jsonl", tmp_path / "out"
    words = [sys.executable, "deploy.py", "run", tiny_bundle, photos, "-o", out, "--log", log, "--skip-existing"]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    while not log.exists() or len(log.read_bytes()) < 5000:
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = _lines(log)
    assert 0 < len(first) < 400
    assert all(Path(line["mask"]).exists() for line in first)
    assert subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert {line["input"] for line in _lines(log)} == {str(path) for path in photos.iterdir()}


_APPEND = """
import sys
from engines.report.lines import told
from engines.report.rows import InputRow
with told(sys.argv[1]) as tell:
    for index in range(int(sys.argv[2])):
        tell.put(InputRow("image", f"{index}-{sys.argv[3]}", "mask", error=sys.argv[3] * 9000))
print(tell.failure)
"""


def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    words = [[sys.executable, "-c", _APPEND, log, "200", letter] for letter in "abc"]
    processes = [subprocess.Popen(each, cwd=ROOT) for each in words]
    assert [process.wait() for process in processes] == [0, 0, 0]
    lines = _lines(log)
    assert len({line["input"] for line in lines}) == len(lines) == 600
    assert all(len(line["error"]) == 9000 and len(set(line["error"])) == 1 for line in lines)


def test_a_full_disk_cuts_no_line(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + _APPEND, log, "5", "a"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"--log {log}: 3 line(s) could not be written: File too large; all else was done\n"
    assert len(_lines(log)) == 2


def test_a_line_that_was_cut_off_stays_alone(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    log.write_text('{"time": "2026')
    with told(str(log)) as lines:
        lines.put(InputRow("image", "a", "b"))
    cut, whole = log.read_text().splitlines()
    assert cut == '{"time": "2026'
    assert json.loads(whole)["input"] == "a"


def test_what_is_worse_than_a_line_is_told(capsys: Any) -> None:
    """A script that starts the machine anew after exit code 1 would never hear of a lost GPU."""
    with told("/dev/full") as lines:
        lines.put(InputRow("image", "a", "b"))
    said = "--log /dev/full: 1 line(s) could not be written: No space left on device; all else was done"
    assert lines.failure == said
    with pytest.raises(DeployError, match=re.escape(said)) as refused:
        RunReport(failed={"a": "no image"}).ended(said)
    assert refused.value.exit_code == 2
    with pytest.raises(GpuLostError, match=re.escape(f"the GPU is gone; {said}")) as lost:
        RunReport(lost="the GPU is gone").ended(said)
    assert lost.value.exit_code == 1
    stopped = VideoReport("a", "b", width=1, height=1, decoder="", live=False, stopped=True)
    assert RunReport(videos=[stopped]).ended(said) == 130
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_run_that_is_refused_makes_no_log(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    log = tmp_path / "logs" / "run.jsonl"
    for words in ([tiny_bundle, tmp_path / "none.png"], [tmp_path / "none", photos], [tiny_bundle, photos, "--resume"]):
        assert _run("run", *words, "-o", tmp_path / "out", "--log", log) == 2
        assert not log.parent.exists()
    (tmp_path / "file").touch()
    assert _run("run", tiny_bundle, photos, "-o", tmp_path / "out", "--log", tmp_path / "file" / "log") == 2
    assert f"cannot be written: {tmp_path / 'file'} is no folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_guide_names_the_keys_of_every_kind(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="rasterio, which reads rasters, is not installed")
    pytest.importorskip("av", reason="PyAV, which reads videos, is not installed")
    from tests.engines.video import clips

    write(tmp_path / "map.tif", np.random.default_rng(0).integers(1, 256, (70, 130, 3), np.uint8))
    clips.write(tmp_path / "clip.mkv", clips.pictures(2))
    log = tmp_path / "run.jsonl"
    inputs = (photos / "0.png", tmp_path / "map.tif", tmp_path / "clip.mkv")
    assert _run("run", tiny_bundle, *inputs, "-o", tmp_path / "out", "--log", log) == 0
    guide = (ROOT / "docs" / "fleet.md").read_text().split("## JSON lines")[1]
    rows = [line.split("|")[1:3] for line in guide.splitlines() if line.startswith("| ")]
    named = {
        kind: {*re.findall(r"`(\w+)`", keys)}
        for about, keys in rows
        for kind in _KINDS
        if re.search(f"of an? {kind}", about)
    }
    of_all = {key for about, _ in rows for key in re.findall(r"`(\w+)`", about)}
    assert of_all == OWN
    for line in _lines(log):
        assert line.keys() == OWN | named.pop(line["kind"])
    assert not named
