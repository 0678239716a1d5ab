"""`build-engine --stride auto` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deploy
from engines.bundle import REPORT, open_bundle
from engines.plan.predict import Costs
from pipeline.receptive import auto


def _build(*argv: object) -> int:
    words = ("build-engine", "tests.models:tiny", "--tile", "64x96", "--backend", "openvino", *argv)
    return deploy.main([str(word) for word in words])


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def a_window_takes_10_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the clock."""
    costs = Costs("here", batch=1, gather_ms=0.0, engine_ms=10.0, stitch_ms=0.0, whole=1.0, peak_bytes=10**8,
                  held_bytes=0, measured="now")  # fmt: skip
    monkeypatch.setattr(auto, "measure_costs", lambda *_: costs)


@pytest.mark.usefixtures("exports_once")
def test_the_stride_is_the_largest_that_keeps_the_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    assert _build("--stride", "auto", "--share", 0.6, "-o", out) == 0
    assert "32x48 keeps" in capsys.readouterr().out  # one of the named
    strides = json.loads((out / REPORT).read_text())["strides"]
    tiling = open_bundle(out).manifest.tiling
    kept = [row["stride_h"] for row in strides if row["share"] >= 0.6]
    assert tiling.stride_h == max(kept) < 64
    assert len(strides) == 32


@pytest.mark.usefixtures("exports_once", "a_window_takes_10_ms")
def test_a_budget_that_the_share_breaks_is_met_by_a_larger_stride(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    words = ("--stride", "auto", "--share", 0.9, "--size", "192x64", "-o", out)
    assert _build(*words, "--budget-ms", 30) == 0
    assert "built again with it" in capsys.readouterr().out
    manifest = open_bundle(out).manifest
    assert manifest.tiling.placements(64, 192) == ([0], [0, 48, 96])  # three windows, as dense as they come
    assert manifest.costs["engine_ms"] == 10
    open_bundle(out).check()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("exports_once", "a_window_takes_10_ms")
def test_a_budget_that_nothing_meets_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--stride", "auto", "--size", "192x64", "--budget-ms", 15, "-o", tmp_path / "bundle")
    assert _build(*words) == 2
    assert _error(capsys).startswith("error: --budget-ms 15: got 20 ms even at a stride of 64x96")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stride", "auto", "--share", 0.999999), "--share 0.999999: got at most"),
        (("--stride", "auto", "--budget-ms", 10), "got no --size WxH"),
        (("--stride", 32, "--share", 0.9), "--share: got it with a stride that is given"),
        (("--budget-ms", 9), "--budget-ms: got it with a stride that is given"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[object, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _build(*words, "-o", tmp_path / "bundle") == 2
    assert said in _error(capsys)
    assert not list(tmp_path.iterdir())


def test_a_bundle_keeps_its_stride(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["build-engine", str(tiny_bundle), "-o", str(tmp_path / "b"), "--stride", "auto"]) == 2
    assert "--stride: a bundle is rebuilt as it is" in _error(capsys)
