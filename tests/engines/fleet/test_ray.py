"""`run --ray` on a real cluster of two nodes, each of several processes: what it writes, and what may die meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.fleet.ray import _end_all
from tests.conftest import ROOT
from tests.engines.rasters.maps import write
from tests.engines.video import clips

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
pytest.importorskip("ray", reason="Ray is not installed")
IMAGES = 24
SITE = Path(__file__).parent / "site"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without cores of its own, and two nodes of one core."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    with (
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        os.makedirs(f"{folder}/ray")
        patch.setenv("RAY_TMPDIR", folder)  # short: sockets lie below
        patch.setenv("PYTHONPATH", str(SITE))
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()
        _end_all(Path(folder))  # agents outlive a head that was killed


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of very different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        size = rng.integers(40, 700 if index % 6 == 0 else 200, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    done = _run(tiny_bundle, photos, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def _with(photos: Path, folder: Path, *names: str) -> Path:
    """A copy of `photos`, in which 1.png is there by these names, too."""
    shutil.copytree(photos, folder)
    for name in names:
        shutil.copy(photos / "1.png", folder / name)
    return folder


def _words(*words: object) -> list[str]:
    return [sys.executable, "deploy.py", "run", *map(str, words)]


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_words(*words), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _without_times(report: dict[str, Any]) -> dict[str, Any]:
    def stripped(found: Any) -> Any:
        if isinstance(found, list):
            return [stripped(each) for each in found]
        if isinstance(found, dict):
            return {key: stripped(each) for key, each in found.items() if not key.endswith(("_ms", "seconds"))}
        return found

    kept: dict[str, Any] = stripped(report)
    return kept


def _started(*words: object, log: Path, lines: int) -> subprocess.Popen[str]:
    """A run that has finished so many images."""
    process = subprocess.Popen(
        _words(*words, "--log", log), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 30
    while len(_lines(log)) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


def _workers() -> set[int]:
    """Processes of workers, but for those of tests that run beside these."""
    found = subprocess.run(["pgrep", "-f", "^ray::FleetWorker"], capture_output=True, text=True, check=False)
    return {pid for pid in map(int, found.stdout.split()) if _runner(pid) == os.environ.get("PYTEST_XDIST_WORKER")}


def _runner(pid: int) -> str | None:
    try:
        names = dict(each.partition("=")[::2] for each in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return names.get("PYTEST_XDIST_WORKER")


@pytest.fixture
def unfinished(photos: Path, tmp_path: Path) -> Iterator[Path]:
    """`photos`, and one that no worker gets past while waits.png.until is there: what ends a run is never too late."""
    folder = _with(photos, tmp_path / "unfinished", "waits.png")
    (folder / "waits.png.until").mkdir()
    yield folder
    shutil.rmtree(folder)


def _with_waits(plain: Path) -> dict[str, bytes]:
    masks = _files(plain)
    return {**masks, "waits.png": masks["1.png"]}


def _wait_for_no_workers() -> None:
    end = time.monotonic() + 20
    while _workers():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_cluster_of_its_own_does_what_a_plain_run_does(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        _compare(tiny_bundle, photos, tmp_path)
        assert not os.listdir(folder)


def _compare(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    mixed, out = _with(photos, tmp_path / "mixed"), tmp_path / "out"
    (mixed / "broken.png").write_bytes(b"no image")
    words = (tiny_bundle, mixed, "--overlay", "--confidence", "--tta", "--scales", "1", "--json")
    both = []
    for more in ((), ("--ray", "--threads", "1", "--log", tmp_path / "run.jsonl")):
        done = _run(*words, "-o", out, *more)
        assert (done.returncode, done.stderr) == (2, "")
        both.append((_files(out), _without_times(json.loads(done.stdout))))
        shutil.rmtree(out)
    assert both[0] == both[1]
    assert len({line["worker"] for line in _lines(tmp_path / "run.jsonl")}) == 2
    _wait_for_no_workers()


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_nothing(
    tiny_bundle: Path, unfinished: Path, plain: Path, nodes: Any, tmp_path: Path
) -> None:
    out, log, until = tmp_path / "out", tmp_path / "run.jsonl", unfinished / "waits.png.until"
    process = _started(tiny_bundle, unfinished, "-o", out, "--ray", nodes.address, log=log, lines=2)
    while not (waiting := [int(each.name) for each in until.iterdir()]):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(waiting[0], signal.SIGKILL)
    shutil.rmtree(until)
    text, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert f"{IMAGES + 1} image(s)" in text
    assert _files(out) == _with_waits(plain)
    assert sorted(line["input"] for line in _lines(log)) == sorted(map(str, unfinished.iterdir()))
    assert [line.split(": ", 1)[1] for line in said.splitlines()] == [
        "its process was killed, for want of memory or from outside; another takes its place"
    ]


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_half_done_and_is_gone_on_with(
    tiny_bundle: Path, unfinished: Path, plain: Path, nodes: Any, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "run.jsonl"
    words = (tiny_bundle, unfinished, "-o", out, "--ray", nodes.address, "--skip-existing")
    process = _started(*words, log=log, lines=3)
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(child, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch("error: .* nothing half-written is left\n", said)
    _wait_for_no_workers()
    there = _files(out)
    assert 3 <= len(there) <= IMAGES
    assert there.items() <= _files(plain).items()
    shutil.rmtree(unfinished / "waits.png.until")
    assert _run(*words, "--log", log).returncode == 0
    assert _files(out) == _with_waits(plain)
    assert sum(line["status"] == "skipped" for line in _lines(log)) == len(there)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_workers_too(
    tiny_bundle: Path, unfinished: Path, plain: Path, nodes: Any, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "run.jsonl"
    process = _started(tiny_bundle, unfinished, "-o", out, "--ray", nodes.address, log=log, lines=3)
    assert _workers()
    os.killpg(process.pid, signal.SIGINT)
    text, said = process.communicate(timeout=60)
    assert (process.returncode, text, said) == (130, "", "interrupted; nothing half-written is left\n")
    _wait_for_no_workers()
    assert _files(out).items() <= _files(plain).items()
    assert {path.suffix for path in out.iterdir()} == {".png"}


@pytest.mark.slow
def test_what_kills_a_worker_or_its_gpu_is_named_and_the_rest_is_done(
    tiny_bundle: Path, photos: Path, plain: Path, nodes: Any, tmp_path: Path
) -> None:
    mixed, out = _with(photos, tmp_path / "mixed", "kills.png", "crashes.png", "loses.png"), tmp_path / "out"
    done = _run(tiny_bundle, mixed, "-o", out, "--ray", nodes.address, "--json")
    failed = json.loads(done.stdout)["failed"]
    alone = "times by a worker that had nothing else: "
    assert failed == {
        str(mixed / "kills.png"): f"tried 3 {alone}its process was killed, for want of memory or from outside",
        str(mixed / "crashes.png"): f"tried 2 {alone}its process crashed: Segmentation fault",
        str(mixed / "loses.png"): f"tried 2 {alone}gpu: an illegal memory access was encountered; "
        "cores/processes were 1/2",
    }
    assert done.returncode == 1  # as of a plain run whose GPU was lost
    assert done.stderr.splitlines()[-1] == f"error: {failed[str(mixed / 'loses.png')]}"
    assert _files(out) == _files(plain)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_where_that_was_asked_for(
    tiny_bundle: Path, photos: Path, plain: Path, nodes: Any, tmp_path: Path
) -> None:
    mixed, out = _with(photos, tmp_path / "mixed", "stops.png"), tmp_path / "out"
    done = _run(tiny_bundle, mixed, "-o", out, "--ray", nodes.address, "--stall-timeout", 4)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*: no progress for 4 s \(--stall-timeout\); another takes its place\n", done.stderr)
    found = _files(out)
    assert found.pop("stops.png") == found["1.png"]
    assert found == _files(plain)


@pytest.mark.slow
def test_a_raster_is_shared_among_the_workers_and_a_video_is_one_workers(
    tiny_bundle: Path, nodes: Any, tmp_path: Path
) -> None:
    pytest.importorskip("rasterio", reason="rasterio, which reads rasters, is not installed")
    """A worker says how many execution contexts took turns; and writing for longer than windows may take is no hang."""
    write(tmp_path / "map.tif", np.random.default_rng(0).integers(1, 256, (1500, 300, 3), np.uint8))
    write(tmp_path / "slow.tif", np.random.default_rng(0).integers(1, 256, (70, 100, 3), np.uint8))
    Image.new("RGB", (70, 50)).save(tmp_path / "two-contexts.png")
    clips.write(tmp_path / "clip.mkv", clips.pictures(5))
    names = ("map.tif", "slow.tif", "clip.mkv", "two-contexts.png")
    words = (tiny_bundle, *(tmp_path / name for name in names), "--polygons", "geojson", "--json")
    whole = _run(*words, "-o", tmp_path / "whole")
    log = tmp_path / "run.jsonl"
    shared = _run(*words, "-o", tmp_path / "shared", "--ray", nodes.address, "--log", log, "--stall-timeout", 4)
    assert (shared.returncode, shared.stderr) == (0, "")
    labels = [clips.decoded(tmp_path / name / "clip.labels.mkv", "gray") for name in ("whole", "shared")]
    assert len(labels[0]) == len(labels[1]) == 5
    assert all(one[0] == other[0] and (one[1] == other[1]).all() for one, other in zip(*labels, strict=True))
    for name in ("whole", "shared"):
        (tmp_path / name / "clip.labels.mkv").unlink()  # Matroska gives each file a number of its own
    assert _files(tmp_path / "shared") == _files(tmp_path / "whole")
    for one, other in zip(*(json.loads(run.stdout)["rasters"] for run in (whole, shared)), strict=True):
        assert (one["polygons"], one["classes"]) == (other["polygons"], other["classes"])
    assert [json.loads(run.stdout)["contexts"] for run in (whole, shared)] == ["2", "2"]
    lines = [line for line in _lines(log) if not line["input"].endswith("slow.tif")]  # whose second half has no rows
    assert sorted((line["kind"], line["status"]) for line in lines) == [
        ("image", "done"), ("raster", "done"), ("raster", "part"), ("video", "done"),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_node_that_cannot_run_the_bundle_is_named_and_one_that_dies_is_replaced(
    tiny_bundle: Path, photos: Path, plain: Path, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = nodes.add_node(num_cpus=1)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # for OpenVINO a processor that can less
    other = nodes.add_node(num_cpus=1)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    out, log = tmp_path / "out", tmp_path / "run.jsonl"
    process = _started(tiny_bundle, photos, "-o", out, "--ray", nodes.address, log=log, lines=2)
    nodes.remove_node(dies, allow_graceful=False)
    _, said = process.communicate(timeout=60)
    nodes.remove_node(other, allow_graceful=False)
    assert process.returncode == 0, said
    assert _files(out) == _files(plain)
    (refused,) = [line for line in said.splitlines() if "not used: bundle" in line]
    assert re.search(rf"bundle {tiny_bundle}: .*; rebuild it here: deploy.py build-engine ", refused)


@pytest.mark.slow
def test_two_runs_at_once_into_one_folder(
    tiny_bundle: Path, photos: Path, plain: Path, nodes: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = _words(tiny_bundle, photos, "-o", out, "--ray", nodes.address)
    both = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [each.wait(60) for each in both] == [0, 0]
    assert _files(out) == _files(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--ray", "127.0.0.1:1"), "error: --ray 127.0.0.1:1: "),
        (("--ray", "{address}", "--threads", "3"), "error: --ray {address}: no node has 3 CPU(s)"),
        (("--ray", "{address}", "--device", "0"), "error: --device with --ray: got both, expected one"),
        (("--ray", "{address}", "--bands", "1,2"), "error: --bands"),
        (("--stall-timeout", "5"), "error: --stall-timeout without --ray: expected a cluster"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_cannot_work_is_one_line(
    words: tuple[str, ...], expected: str, tiny_bundle: Path, photos: Path, nodes: Any, tmp_path: Path
) -> None:
    given = [word.format(address=nodes.address) for word in words]
    done = _run(tiny_bundle, photos, "-o", tmp_path / "out", *given)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(re.escape(expected.format(address=nodes.address)) + ".*\n", done.stderr)


@pytest.mark.slow
def test_a_head_that_is_gone_is_one_line(tiny_bundle: Path, photos: Path, nodes: Any, tmp_path: Path) -> None:
    """The last one here: it takes the cluster with it."""
    many, out, log = tmp_path / "many", tmp_path / "out", tmp_path / "run.jsonl"
    many.mkdir()
    for index in range(40 * IMAGES):
        os.link(photos / f"{index % IMAGES}.png", many / f"{index}.png")
    process = _started(tiny_bundle, many, "-o", out, "--ray", nodes.address, log=log, lines=1)
    nodes.head_node.kill_gcs_server(check_alive=False)
    text, said = process.communicate(timeout=40)
    assert (process.returncode, text) == (2, "")
    *warnings, last = said.splitlines()  # workers may notice first
    assert re.fullmatch("error: --ray .* does not answer any more; .* with --skip-existing goes on", last)
    assert all(line.startswith("warning ") for line in warnings)
    assert {path.suffix for path in out.iterdir()} == {".png"}
