"""`bench`, and the worker processes in which everything is timed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deploy
from engines.errors import DeployError
from engines.measure.bench import Stats, bench
from engines.measure.worker import Worker
from engines.segmenter import open_segmenter

ROOT = Path(__file__).parents[3]
IMAGE = np.random.default_rng(1).integers(0, 256, (100, 170, 3), np.uint8)


def test_a_worker_labels_as_the_segmenter_in_this_process(tiny_bundle: Path) -> None:
    with open_segmenter(tiny_bundle) as (segmenter, manifest):
        expected = segmenter.segment(IMAGE).labels
    with Worker(tiny_bundle, threads=1) as worker:
        worker.put(IMAGE)
        frame = worker.frame()
        assert np.array_equal(worker.labels(), expected)
        assert (worker.opened.backend, worker.opened.sdk, worker.opened.threads) == ("openvino", manifest.sdk, 1)
        rows, columns = manifest.tiling.placements(*IMAGE.shape[:2])
        assert frame.windows == len(rows) * len(columns)
        assert 0 < frame.gather_ms + frame.engine_ms + frame.stitch_ms <= frame.frame_ms
        assert worker.engine() > 0
        assert sum(worker.executed().values()) == pytest.approx(1)


def test_peak_memory_is_that_of_the_worker_alone(tiny_bundle: Path) -> None:
    """However much this process has held: Linux hands ru_maxrss down to children, and that must not be counted."""
    ballast = np.ones(900_000_000, np.uint8)
    with Worker(tiny_bundle) as worker:
        worker.put(IMAGE)
        worker.frame()
        small = worker.peak_bytes()
        worker.put(np.zeros((6000, 6000, 3), np.uint8))
        large = worker.peak_bytes()
    assert 30e6 < small < ballast.nbytes
    assert large - small > 0.9 * 6000 * 6000 * 3


def test_a_worker_says_what_is_wrong_with_its_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (copy / "engine.bin").write_bytes(b"changed")
    with pytest.raises(DeployError, match=r"engine\.bin has changed"):
        Worker(copy)
    with pytest.raises(DeployError, match="expected a folder made by build-engine"):
        Worker(tmp_path)


def test_nothing_is_imported_from_the_current_directory(tiny_bundle: Path, tmp_path: Path) -> None:
    """The user's folder may hold modules of the names that the worker imports: they are not executed."""
    for name in ("engines/__init__.py", "numpy.py", "json.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\nraise SystemExit(5)\n")
    command = [sys.executable, Path(deploy.__file__).absolute(), "bench", tiny_bundle, "--rounds", "1"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("error", "code"), [("GpuLostError", 1), ("DeployError", 2)])
def test_bench_ends_as_its_worker_did(
    error: str, code: int, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A process of its own whose first frame fails: a GPU that was lost there is told from input at fault."""
    (tmp_path / "worker.py").write_text(
        "import sys\nfrom engines import errors\nfrom engines.measure import worker\ndef fail(*words):\n"
        f"    raise errors.{error}('gpu: an illegal memory access was encountered')\n"
        "worker.Segmenter.start = fail\nsys.exit(worker.main(sys.argv[3:]))\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/worker.py "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert deploy.main(["bench", str(tiny_bundle), "--rounds", "1"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == "error: gpu: an illegal memory access was encountered"


def test_a_worker_that_dies_is_an_error_with_its_signal(tiny_bundle: Path) -> None:
    with Worker(tiny_bundle) as worker:
        worker.put(IMAGE)
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(DeployError, match=r"killed by signal 9.*out of memory"):
            worker.frame()


def test_statistics_are_those_of_the_standard_library() -> None:
    samples = np.random.default_rng(0).gamma(2.0, 5.0, 101).tolist()
    stats = Stats.of(samples)
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    assert (stats.p50, stats.p95, stats.p99) == pytest.approx((statistics.median(samples), cuts[94], cuts[98]))
    assert (stats.mean, stats.fastest, stats.count) == pytest.approx((statistics.fmean(samples), min(samples), 101))
    with pytest.raises(DeployError, match="no samples"):
        Stats.of([])


def test_bench_counts_its_rounds_and_not_the_warm_up(tiny_bundle: Path) -> None:
    report = bench(tiny_bundle, IMAGE, None, rounds=3, warmup=2, threads=1)
    assert report.frame_ms.count == report.window_ms.count == 3
    assert report.size == (100, 170)
    assert report.to_json()["frames_per_second"] == pytest.approx(1e3 / report.frame_ms.p50, rel=1e-3)
    assert report.settings["threads"] == 1


def test_bench_from_the_command_line(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(tiny_bundle), "--size", "150x70", "--rounds", "2", "-o", str(tmp_path / "bench.json")]
    assert deploy.main(words) == 0
    text = capsys.readouterr().out
    assert "frame     150x70" in text
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["size"] == [70, 150]
    assert {"p50", "p95", "p99"} <= set(report["engine_ms"])
    assert report["settings"]["sdk"].startswith("openvino")
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    assert deploy.main(["bench", str(tiny_bundle), "--image", str(tmp_path / "a.png"), "--rounds", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [100, 170]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "bench.json"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--image", "none.png"], "none.png"), (["-o", "/no/such/folder/x.json"], "/no/such/folder")],
)
def test_bench_errors_are_one_line(
    extra: list[str], message: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy.main(["bench", str(tiny_bundle), "--rounds", "1", *extra]) == 2
    assert message in capsys.readouterr().err


def test_bench_needs_neither_torch_nor_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    """Modules of those names that raise, ahead of the real ones, for this process and its worker."""
    for name in ("torch", "onnx", "onnxruntime", "pipeline", "calib"):
        (tmp_path / f"{name}.py").write_text(f"raise AssertionError('imported {name}')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import deploy; sys.exit(deploy.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", str(tiny_bundle), "--rounds", "1"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
