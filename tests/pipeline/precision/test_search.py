"""`--precision auto`: what is measured decides, and everything that was measured is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy
import pipeline.precision.search as search_module
from calib.data.scenes import CLASSES, render
from calib.ranges.ranges import Ranges
from engines.backends import get_backend
from engines.bundle import REPORT, open_bundle
from engines.contract import BuildConfig, Session
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.blocks import blocks_of
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.search import Trial, Workbench, _choose, search
from pipeline.request import LowerOptions
from tests.pipeline.precision.lowering import exported
from tests.pipeline.precision.max_ranges import ranges_from_windows


@pytest.fixture(scope="module")
def demo() -> tuple[OnnxGraph, Ranges, list[np.ndarray], np.ndarray]:
    graph, windows, reference = exported("demo", 128)
    return graph, ranges_from_windows(graph, windows), list(windows), reference


def test_blocks_are_attentions_and_feed_forwards(demo: tuple) -> None:  # type: ignore[type-arg]
    graph, ranges, _, _ = demo
    plan = plan_int8(graph, ranges)
    quantised = [node.output for node in plan.nodes if node.precision == "int8"]
    blocks = blocks_of(graph, plan, most=99)
    assert [layer for block in blocks for layer in block.layers] == quantised
    reduced = [1, 4, 2]  # layers: the keys' and values' reduction, cut off by its norm; Q, K, V and out; fc1 and fc2
    embed, decoder = [1], [5]  # that of the first stage reads three channels and is not quantised
    stages = [*2 * reduced, *2 * [*embed, *2 * reduced], *embed, *2 * [4, 2]]
    assert [len(block.layers) for block in blocks] == [*stages, *decoder]
    few = blocks_of(graph, plan, most=6)
    assert len(few) == 6
    assert [layer for block in few for layer in block.layers] == quantised


CHOSEN = "chosen, the fastest inside the budget"


@pytest.mark.parametrize(
    ("trials", "chosen", "verdicts"),
    [
        (
            [("fp32", 10, 0), ("bf16", 6, 0.1), ("int8", 5, 0.4)], "int8",
            ["int8 is 2.00x as fast", "int8 is 1.20x as fast", CHOSEN],
        ),
        (
            [("fp32", 10, 0), ("bf16", 6, 0.1), ("int8", 5, 0.6)], "bf16",
            ["bf16 is 1.67x as fast", CHOSEN, "beyond the budget of 0.5"],
        ),
        (
            [("fp32", 10, 0), ("bf16", 6, 0.1), ("int8", 5.95, 0)], "bf16",
            ["bf16 is 1.67x as fast", CHOSEN, "less than 2 % faster than bf16"],
        ),
        (
            [("fp32", 10, 0), ("bf16", 6, 0.9), ("int8", 5, 0.9)], "fp32",
            [CHOSEN, "beyond the budget of 0.5", "beyond the budget of 0.5"],
        ),
        (
            [("fp32", 10, 0), ("bf16", 12, 0), ("int8", 11, 0)], "fp32",
            [CHOSEN, "fp32 is 1.20x as fast", "fp32 is 1.10x as fast"],
        ),
    ],
)  # fmt: skip
def test_the_fastest_inside_the_budget(
    trials: list[tuple[str, float, float]], chosen: str, verdicts: list[str]
) -> None:
    best, judged = _choose([Trial(*trial) for trial in trials], max_drop=0.5)
    assert best == chosen
    assert [trial.verdict for trial in judged] == verdicts


def _search(  # type: ignore[no-untyped-def]
    demo: tuple,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
    gains: Sequence[float],
    whole: dict[str, float],
    half: str = "",
):
    """With made-up times: `gains` of the blocks in turn against 100 ms, then `whole` plans by their number.

    The budget is so wide that times decide: labels change by up to 3 points here, on some processors by more.
    """
    graph, ranges, windows, reference = demo
    blocks = iter(gains)

    def timed(sessions: Sequence[object], window: np.ndarray, rounds: int = 5) -> list[float]:
        if len(sessions) == 2 and rounds != search_module.FINAL_ROUNDS:
            return [100.0, 100.0 - next(blocks)]
        return list(whole.values())[: len(sessions)]

    monkeypatch.setattr(search_module, "median_ms", timed)
    lines: list[str] = []
    wanted = reference.argmax(1)

    def score(session: Session) -> float:
        return 100 * float(np.mean([session.run(w).argmax(1)[0] == r for w, r in zip(windows, wanted, strict=True)]))

    bench = Workbench(get_backend("openvino"), BuildConfig(threads=1), windows, reference, score, 20.0, half=half)
    decision = search(graph, ranges, LowerOptions(rest="fp32"), bench, lambda step, text: lines.append(text))
    return decision, lines


def test_only_blocks_that_gain_are_quantised(demo: tuple, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    gains = [5.0 if index % 2 else -3.0 for index in range(99)]
    decision, lines = _search(demo, monkeypatch, gains, {"fp32": 100.0, "mixed": 80.0, "int8": 90.0})
    assert decision.precision == "int8"
    blocks = decision.report["search"]["blocks"]
    assert [block["verdict"] == "int8" for block in blocks] == [gain > 0 for gain in gains[: len(blocks)]]
    quantised = sum(block["layers"] for block in blocks if block["verdict"] == "int8")
    assert len(decision.skip) == sum(block["layers"] for block in blocks) - quantised > 0
    assert any("gains -3.0 of 100.0 ms" in line for line in lines)
    assert all(0 <= block["error"] < 0.5 for block in blocks)
    assert max(block["error"] for block in blocks) > 0


def test_int8_that_gains_nothing_is_not_chosen(demo: tuple, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    decision, lines = _search(demo, monkeypatch, [0.5] * 99, {"fp32": 100.0, "int8": 99.0})
    assert (decision.precision, decision.skip) == ("fp32", ())
    assert any(line.startswith("int8: 99.0 ms") and "less than 2 % faster than fp32" in line for line in lines)


def test_a_half_type_is_a_plan_where_int8_cannot_be_mixed_with_it(
    demo: tuple,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT 8.6, which scales in FP32 alone: its FP16 is faster than its INT8 beside FP32."""
    whole = {"fp32": 100.0, "fp16": 50.0, "int8": 70.0}
    decision, _ = _search(demo, monkeypatch, [0.5] * 99, whole, "fp16")
    assert decision.precision == "fp16"
    assert [trial["name"] for trial in decision.report["search"]["trials"]] == ["fp32", "fp16", "int8"]


def _photographs(folder: Path) -> Path:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(3):
        scene = render(seed, 128, 192)
        Image.fromarray(scene.image).save(folder / "images" / f"{seed}.png")
        Image.fromarray(scene.labels).save(folder / "labels" / f"{seed}.png")
    return folder


def test_auto_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint and a folder of labelled images are enough; the bundle tells what was decided and why."""
    photographs = _photographs(tmp_path / "photographs")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    argv = ["build-engine", "demo", "-o", str(tmp_path / "b"), "--precision", "auto", "--tile", "128"]
    argv += ["--calib", str(photographs), "--eval", str(photographs), "--max-drop", "3", "--max-error", "1"]
    assert deploy.main([*argv, "--min-agreement", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "mse" in out
    bundle = open_bundle(tmp_path / "b")
    report = json.loads((tmp_path / "b" / REPORT).read_text())
    trials = {trial["name"]: trial for trial in report["search"]["trials"]}
    assert {"fp32", "int8"} <= set(trials)
    # Read off the numbers alone: what shipped is within 2 % of the fastest plan that loses at most three points.
    fastest = min(trial["ms"] for trial in trials.values() if trial["cost"] <= 3)
    shipped = [trial for name, trial in trials.items() if name.split()[0] == bundle.manifest.precision]
    assert min(trial["ms"] for trial in shipped if trial["cost"] <= 3) <= fastest / 0.98
    assert report["calibration"]["images"] == 3
    assert len(report["calibration"]["dataset_sha256"]) == 64


def test_ranges_of_another_window_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs = _photographs(tmp_path / "photographs")
    ranges = str(tmp_path / "ranges.json")
    assert deploy.main(["calibrate", "demo", str(photographs), "-o", ranges, "--tile", "64", "--windows", "2"]) == 0
    argv = ["build-engine", "demo", "-o", str(tmp_path / "b"), "--precision", "int8", "--calib", ranges]
    assert deploy.main([*argv, "--tile", "128"]) == 2
    assert "run deploy.py calibrate with the options of build-engine" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_auto_without_photographs_says_that_int8_is_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["build-engine", "tests.models:tiny", "-o", str(tmp_path / "b"), "--precision", "auto", "--tile", "64x96"]
    assert deploy.main([*argv, "--min-agreement", "0.9"]) == 0
    assert "int8 is not tried: no photographs" in capsys.readouterr().out


def test_a_plan_that_fails_its_gate_gives_way_to_the_next(
    demo: tuple,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],  # type: ignore[type-arg]
) -> None:
    """INT8 looks fastest here, but the user asks for more agreement than it has."""

    def timed(sessions: Sequence[object], window: np.ndarray, rounds: int = 5) -> list[float]:
        return [100.0 - 10 * index for index in range(len(sessions))]

    monkeypatch.setattr(search_module, "median_ms", timed)
    argv = ["build-engine", "demo", "-o", str(tmp_path / "b"), "--precision", "auto", "--tile", "128"]
    assert deploy.main([*argv, "--max-drop", "50", "--min-agreement", "0.9995", "--rest", "fp32"]) == 0
    assert "int8 fails its gate" in capsys.readouterr().out
    assert open_bundle(tmp_path / "b").manifest.precision == "fp32"
