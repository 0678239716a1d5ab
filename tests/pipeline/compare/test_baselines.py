"""PyTorch on the GPU beside the engines that are compared there: what speed-ups are counted from, and never shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.backends.openvino.openvino import OpenVINOBackend
from engines.errors import DeployError
from engines.measure.worker import Opened
from engines.tiling.placement import Tiling
from pipeline.compare import run
from pipeline.compare.judge import Limits, verdict
from pipeline.compare.measure import Measured
from pipeline.compare.report.page import page
from pipeline.compare.report.table import markdown, terminal
from pipeline.compare.rows import Comparison, Row
from pipeline.compare.run import CompareRequest
from pipeline.request import BuildRequest
from tests.pipeline.compare.read_back import comparison_from_json
from tests.pipeline.compare.recorded import comparison, row, timing

ZERO = (0.0,) * 9


def _on_gpu() -> Comparison:
    """The recorded comparison as if it had been made on a GPU: baselines of 40 and 12 ms and engines of 5 to 9."""
    base, *rest = comparison().rows
    measured = {
        "reference": base,
        "a": replace(row("fp32", 27.2, ZERO, 1.0, {"fp32": 1.0}), backend="torch_cuda", baseline=True),
        "b": replace(row("fp16", 1.0, ZERO, 0.9999, {"fp16": 1.0}), backend="torch_compile", baseline=True),
        **{each.precision: replace(each, timing=timing(0.2)) if each.measured else each for each in rest},
    }
    judged = run._judged(
        {name: replace(each, timing=None, speedup=None, passed=False) for name, each in measured.items()},
        {name: _result(each) for name, each in measured.items() if each.measured},
        Limits().for_data(True),
    )
    return verdict(replace(comparison(), rows=judged))


def _result(row: Row) -> Measured:
    assert row.timing is not None
    assert row.agreement is not None

    class Scores:
        miou, aacc = row.miou, row.pixel_accuracy
        classes = tuple(type("Class", (), {"iou": iou}) for iou in row.class_iou or ())

    opened = Opened(row.precision, row.backend, row.sdk, row.device, 2, 240.0)
    return Measured(
        opened, Scores(), row.agreement, row.executed, row.timing, 3, (1024, 2048), 600_000_000, ()  # type: ignore[arg-type]
    )  # fmt: skip


def test_speed_is_counted_from_pytorch_on_the_gpu() -> None:
    c = _on_gpu()
    slow = {each.name: each.timing.frame.p50 for each in c.rows if each.timing}["fp32 torch_cuda"]
    assert slow == pytest.approx(40)
    assert c.yardstick.name == "fp32 torch_cuda"
    for each in c.rows:
        if each.timing is not None:
            assert each.speedup == pytest.approx(slow / each.timing.frame.p50)
    assert c.reference.speedup == pytest.approx(0.0176, abs=1e-4)  # the CPU flatters nobody
    assert "3.1x PyTorch on the GPU" in c.verdict


def test_a_baseline_is_neither_judged_nor_shipped() -> None:
    c = _on_gpu()
    fast = tuple(replace(each, timing=timing(0.01)) if each.baseline else each for each in c.rows)
    again = verdict(replace(c, rows=fast))
    assert [each.precision for each in again.candidates] == ["fp32", "bf16", "int8", "auto", "fp16"]
    assert again.ship in {each.name for each in again.candidates}
    worse = tuple(replace(each, passed=False) if each.baseline else each for each in c.rows if each.name != "fp16")
    assert replace(c, rows=worse).passed == c.passed


def test_reports_show_them_as_what_they_are() -> None:
    c = _on_gpu()
    failed = Row("demo", "fp16", "torch_compile", baseline=True, reasons=("torch.compile needs triton",))
    c = replace(c, rows=(*c.rows[:2], failed, *c.rows[3:]))
    assert comparison_from_json(json.loads(json.dumps(c.to_json()))) == c
    for text in (terminal(c), markdown(c), page(c, {})):
        assert "fp32 torch_cuda" in text
        assert "torch.compile needs triton" in text
    on_cuda = replace(c, rows=tuple(replace(each, device="cuda sm_90 a GPU") for each in c.rows))
    for write in (terminal, markdown, lambda each: page(each, {})):
        assert "timed in rounds of their own" in " ".join(write(on_cuda).split())
        assert "timed in rounds of their own" not in " ".join(write(comparison()).split())
    line = next(each for each in markdown(c).splitlines() if each.startswith("| fp32 torch_cuda"))
    assert "| baseline |" in line


EXACT: Any = None  # builds are replaced here


def _request(tmp_path: Path, model: str, backend: str, *precisions: str) -> CompareRequest:
    build = BuildRequest(model, tmp_path, Tiling(64, 96, 48, 64), backend=backend)
    return CompareRequest(build, tmp_path, precisions)


def _silent(step: str, text: str) -> None:
    pass


def test_a_cpu_has_none(tmp_path: Path) -> None:
    assert run._baselines(_request(tmp_path, "tests.models:tiny", "openvino", "fp32"), EXACT, tmp_path, _silent) == {}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """OpenVINO poses as a GPU.  Returns what was built."""
    built: list[tuple[str, str]] = []

    def build_bundle(request: BuildRequest, log: Any, exact: Any) -> Any:
        built.append((request.backend, request.precision))
        raise DeployError("no memory left")

    monkeypatch.setattr(OpenVINOBackend, "on_gpu", True)
    monkeypatch.setattr(run, "build_bundle", build_bundle)
    monkeypatch.setattr(run, "choose_backend", _choose)
    return built


def _choose(name: str, precision: str) -> tuple[Any, str]:
    from engines.backends import get_backend

    return get_backend("openvino" if name == "auto" else name), ""


def test_both_are_built_and_a_failure_is_a_row(tmp_path: Path, as_on_a_gpu: list[tuple[str, str]]) -> None:
    rows: Mapping[str, Row] = run._baselines(
        _request(tmp_path, "demo", "auto", "fp32", "fp16"), EXACT, tmp_path, _silent
    )
    assert as_on_a_gpu == [("torch_cuda", "fp32"), ("torch_compile", "fp16")]
    assert [each.name for each in rows.values()] == ["fp32 torch_cuda", "fp16 torch_compile"]
    assert all(each.baseline and each.reasons == ("no memory left",) for each in rows.values())


def test_what_is_a_candidate_itself_or_has_no_module_is_not_built_twice(
    tmp_path: Path, as_on_a_gpu: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run._baselines(_request(tmp_path, "net.onnx", "openvino", "fp32"), EXACT, tmp_path, _silent) == {}
    monkeypatch.setattr(run, "_on_gpu", lambda request: True)
    rows = run._baselines(_request(tmp_path, "demo", "torch_cuda", "fp32", "fp16"), EXACT, tmp_path, _silent)
    assert [each.name for each in rows.values()] == ["fp16 torch_compile"]
