"""`deploy.py plan` as a user meets it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deploy
from engines.bundle import open_bundle
from engines.measure.worker import Worker
from engines.plan import plan as planning
from engines.plan.strides import StrideShare
from engines.proof.record import record


def _run(*argv: object) -> int:
    return deploy.main([str(word) for word in ("plan", *argv)])


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Of its own: its costs are kept in it."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def field(tmp_path: Path) -> Path:
    shares = [StrideShare(16, 24, 0.99), StrideShare(48, 64, 0.96), StrideShare(64, 96, 0.3)]
    path = tmp_path / "receptive-field.json"
    path.write_text(json.dumps({"window": [64, 96], "strides": [each.to_json() for each in shares]}))
    return path


def test_costs_are_measured_once_and_kept(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(bundle, "--size", "1000x500") == 0
    text = capsys.readouterr().out
    assert "kept in the bundle" in text
    assert "1000x500, 176 window(s): 11 row(s) of 16" in text
    open_bundle(bundle).check()
    monkeypatch.setattr(planning, "measure_costs", lambda *_: pytest.fail("ran the engine"))
    assert _run(bundle, "--size", "96x64", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["windows"], body["share"], body["chosen"]) == (1, None, None)
    assert body["costs"] == open_bundle(bundle).manifest.costs
    assert {tuple(row["stride"]) for row in body["strides"]} == {(32, 48), (48, 72), (48, 64), (56, 84)}


def test_costs_of_another_machine_are_measured_again(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(bundle, "--size", "200x100", "--threads", 1) == 0
    assert _run(bundle, "--size", "200x100", "--threads", 1) == 0
    assert _run(bundle, "--size", "200x100", "--threads", 2) == 0
    assert _run(bundle, "--size", "200x100", "--threads", 2, "--measure") == 0
    assert capsys.readouterr().out.count("measured on two windows") == 3


def test_memory_is_what_the_process_then_takes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(bundle, "--size", "3000x2000", "--json") == 0
    said = json.loads(capsys.readouterr().out)["peak_bytes"]
    with Worker(bundle) as worker:
        worker.put(np.zeros((2000, 3000, 3), np.uint8))
        worker.frame()
        worker.frame()
        assert said == pytest.approx(worker.peak_bytes(), rel=0.15)


def test_a_field_chooses_the_stride(bundle: Path, field: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(bundle, "--size", "1000x500", "--field", field) == 0
    text = capsys.readouterr().out
    assert "96.0 % of its receptive field's energy" in text
    assert "best for this: --stride 48x64" in text
    assert _run(bundle, "--size", "1000x500", "--field", field, "--share", "0.99", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["chosen"] == {"stride_h": 16, "stride_w": 24, "share": 0.99}
    budget = 1.01 * next(row["frame_ms"] for row in body["strides"] if row["stride"] == [48, 64])
    assert _run(bundle, "--size", "1000x500", "--field", field, "--share", "0.99", "--budget-ms", budget, "--json") == 0
    assert json.loads(capsys.readouterr().out)["chosen"]["stride_h"] == 48


def test_a_bundle_that_resizes_is_planned_at_that_size(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = open_bundle(bundle).manifest
    assert record(bundle, manifest, replace(manifest, tiling=replace(manifest.tiling, resize="short=128"))) is None
    assert _run(bundle, "--size", "2000x1000", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["image"], body["size"], body["rows"]) == ([1000, 2000], [128, 256], 3)


def test_bad_input_is_one_line(bundle: Path, field: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(bundle, "--size", "1000x500", "--budget-ms", 100) == 2
    assert "does not know its receptive field" in _error(capsys)
    assert _run(bundle, "--size", "1000x500", "--field", field, "--budget-ms", 0.001) == 2
    assert "--budget-ms 0.001: got" in _error(capsys)
    assert _run(bundle, "--size", "1000x500", "--field", bundle / "report.json") == 2
    assert "expected the JSON that receptive-field writes" in _error(capsys)
    assert _run(field.parent, "--size", "1000x500") == 2
    assert "expected a folder made by build-engine" in _error(capsys)
