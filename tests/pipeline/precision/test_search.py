"""`--precision auto`: what is measured decides, and everything that was measured is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import deploy
import pipeline.build as build_module
import pipeline.precision.search as search_module
from calib.data.scenes import CLASSES, render
from calib.ranges.ranges import Ranges
from engines.backends import get_backend
from engines.bundle import FILES, MANIFEST, REPORT, open_bundle
from engines.contract import Backend, BuildConfig, Session
from engines.segmenter import Segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.evaluation.statistics import Interval, equal_labels
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.blocks import blocks_of
from pipeline.precision.budget import Jury, Panel
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.prefix import MOST_SWAPS
from pipeline.precision.search import Trial, Workbench, _choose, search
from pipeline.request import LowerOptions
from tests.pipeline.precision.lowering import exported
from tests.pipeline.precision.max_ranges import ranges_from_windows


@pytest.fixture(scope="module")
def demo() -> tuple[OnnxGraph, Ranges, list[np.ndarray], np.ndarray]:
    graph, windows, reference = exported("demo", 128)
    return graph, ranges_from_windows(graph, windows), list(windows), reference


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours joined to six blocks: each compiles an engine."""
    monkeypatch.setattr(search_module, "blocks_of", partial(blocks_of, most=6))


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
BEYOND = "may lose more than the budget of 0.5"


def _trial(name: str, ms: float, loss: float, spread: float = 0.0) -> Trial:
    """Rounds on a machine that is three times as slow in every fourth: the plans take turns, so all are."""
    times = tuple(ms * (3 if turn % 4 == 0 else 1) for turn in range(15))
    return Trial(name, times, Interval(loss, loss - spread, loss + spread))


@pytest.mark.parametrize(
    ("trials", "chosen", "verdicts"),
    [
        (
            [("fp32", 10, 0), ("bf16", 6, 0.1), ("int8", 5, 0.4)], "int8",
            ["int8 is 2.00x as fast", "int8 is 1.20x as fast", CHOSEN],
        ),
        (
            [("fp32", 10, 0), ("bf16", 6, 0.1), ("int8", 5, 0.6)], "bf16",
            ["bf16 is 1.67x as fast", CHOSEN, BEYOND],
        ),
        (
            [("fp32", 10, 0), ("bf16", 6, 0.1, 0.1), ("int8", 5, 0.2, 0.4)], "bf16",
            ["bf16 is 1.67x as fast", CHOSEN, BEYOND],
        ),
        (
            [("fp32", 10, 0), ("bf16", 6, 0.1), ("int8", 5.95, 0)], "bf16",
            ["bf16 is 1.67x as fast", CHOSEN, "not surely 2 % faster than bf16"],
        ),
        (
            [("fp32", 10, 0), ("bf16", 6, 0.9), ("int8", 5, 0.9)], "fp32",
            [CHOSEN, BEYOND, BEYOND],
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
    best, judged = _choose([_trial(*trial) for trial in trials], max_drop=0.5)
    assert best == chosen
    assert [trial.verdict for trial in judged] == verdicts


def test_a_gain_in_some_rounds_is_none() -> None:
    """Its median is smaller by a tenth, but it was faster in nine rounds of fifteen, as chance may have it."""
    lucky = Trial("int8", (9.0,) * 9 + (30.0,) * 6, Interval(0, 0, 0))
    assert _choose([_trial("fp32", 10, 0), lucky], 0.5)[0] == "fp32"
    even = Trial("fp32", (10.0,) * 15, Interval(0, 0, 0))
    assert _choose([even, lucky], 0.5)[0] == "fp32"
    assert _choose([even, replace(lucky, times=(9.0,) * 12 + (30.0,) * 3)], 0.5)[0] == "int8"


def _search(  # type: ignore[no-untyped-def]
    demo: tuple,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
    gains: Sequence[float],
    whole: dict[str, float],
    half: str = "",
    max_drop: float = 100.0,
):
    """With made-up times: `gains` of the blocks in turn against 100 ms, then `whole` plans by their number."""
    graph, ranges, windows, reference = demo
    blocks = iter(gains)

    def timed(sessions: Sequence[object], window: np.ndarray, rounds: int = 5) -> list[list[float]]:
        if rounds == search_module.BLOCK_ROUNDS:
            return [[100.0] * rounds, [100.0 - next(blocks)] * rounds]
        return [[ms] * rounds for ms in list(whole.values())[: len(sessions)]]

    monkeypatch.setattr(search_module, "rounds_ms", timed)
    lines: list[str] = []
    wanted = reference.argmax(1)

    def count(segmenter: Segmenter) -> np.ndarray:
        got = [segmenter.session.run(window).argmax(1)[0] for window in windows]
        return np.array([[(g == w).sum(), w.size] for g, w in zip(got, wanted, strict=True)])

    spec = ModelSpec("demo", "", ("a",) * reference.shape[1], ((0, 0, 0),) * reference.shape[1])
    bench = Workbench(
        get_backend("openvino"), BuildConfig(threads=1), windows=windows,
        panel=Panel(len(windows), count, equal_labels),
        max_drop=max_drop, segmenter=lambda session: Segmenter.on_host(session, spec, Tiling(128, 128, 128, 128)),
        islands=windows, half=half,
    )  # fmt: skip
    decision = search(graph, ranges, LowerOptions(rest="fp32"), bench, lambda step, text: lines.append(text))
    return decision, lines


def test_only_blocks_that_gain_are_quantised(demo: tuple, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    gains = [5.0 if index % 2 else -3.0 for index in range(99)]
    decision, lines = _search(demo, monkeypatch, gains, {"fp32": 100.0, "mixed": 80.0, "int8": 90.0})
    assert (decision.plans[0].name, decision.plans[0].precision) == ("int8 where it gains", "int8")
    blocks = decision.report["search"]["blocks"]
    assert [block["verdict"] == "gains" for block in blocks] == [gain > 0 for gain in gains[: len(blocks)]]
    quantised = sum(block["layers"] for block in blocks if block["verdict"] == "gains")
    assert len(decision.plans[0].skip) == sum(block["layers"] for block in blocks) - quantised > 0
    assert any("gains -3.0 of 100.0 ms" in line for line in lines)
    assert all(0 <= block["error"] < 0.5 for block in blocks)
    assert max(block["error"] for block in blocks) > 0


def test_as_many_blocks_as_the_budget_allows(demo: tuple, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    """All of them gain, and together they cost too much: those that cost least for what they gain are taken."""
    whole = {"fp32": 100.0, "mixed": 80.0, "int8": 70.0}
    everything, _ = _search(demo, monkeypatch, [5.0] * 99, whole)
    (all_of_them,) = everything.report["search"]["sets"]
    budget = all_of_them["loss"]["high"] / 2
    assert budget > 0
    decision, lines = _search(demo, monkeypatch, [5.0] * 99, whole, max_drop=budget)
    sets, blocks = decision.report["search"]["sets"], decision.report["search"]["blocks"]
    assert decision.plans[0].name == "int8 where it gains"
    assert 2 < len(sets) <= 2 + 4 + MOST_SWAPS
    assert not sets[0]["inside"]
    *_, taken = (each for each in sets if each["inside"])  # the last that was found to be inside is kept
    assert 0 < len(taken["blocks"]) < len(blocks)
    assert taken["loss"]["high"] <= budget
    quantised = sum(block["layers"] for block in blocks if block["name"] in taken["blocks"])
    assert len(decision.plans[0].skip) == sum(block["layers"] for block in blocks) - quantised
    assert "int8" not in [plan.name for plan in decision.plans]
    assert decision.plans[-1].name == "fp32"
    assert any("beyond the budget" in line for line in lines)


def test_int8_that_gains_nothing_is_not_chosen(demo: tuple, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[type-arg]
    decision, lines = _search(demo, monkeypatch, [0.5] * 99, {"fp32": 100.0, "int8": 99.0})
    assert (decision.plans[0].precision, decision.plans[0].skip) == ("fp32", ())
    assert any(line.startswith("int8: 99.0 ms") and "not surely 2 % faster than fp32" in line for line in lines)


def test_a_half_type_is_a_plan_where_int8_cannot_be_mixed_with_it(
    demo: tuple,  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT 8.6, which scales in FP32 alone: its FP16 is faster than its INT8 beside FP32."""
    whole = {"fp32": 100.0, "fp16": 50.0, "int8": 70.0}
    decision, _ = _search(demo, monkeypatch, [0.5] * 99, whole, "fp16")
    assert decision.plans[0].precision == "fp16"
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
    # Read off the numbers alone: what shipped was measured as an engine, and its interval lies inside the budget.
    assert report["shipped"]["plan"] in trials
    assert report["shipped"]["plan"].split()[0] == bundle.manifest.precision
    assert report["shipped"]["loss"]["high"] <= 3
    assert report["search"]["images"] == {
        "seen": 3,
        "seen_left_out": False,
        "images": {"selection": 2, "report": 1},
        "unit": "mIoU",
    }
    assert "scores are of what was seen" in out
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


def _made_up_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 looks fastest, and every block gains."""

    def timed(sessions: Sequence[object], window: np.ndarray, rounds: int = 5) -> list[list[float]]:
        return [[100.0 - 10 * index] * rounds for index in range(len(sessions))]

    monkeypatch.setattr(search_module, "rounds_ms", timed)


def test_a_plan_that_fails_its_gate_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user asks for less error than INT8 has."""
    _made_up_times(monkeypatch)
    argv = ["build-engine", "demo", "-o", str(tmp_path / "b"), "--precision", "auto", "--tile", "128"]
    assert deploy.main([*argv, "--max-drop", "100", "--max-error", "0.002", "--rest", "fp32"]) == 0
    assert "int8 fails (int8 diverges from" in capsys.readouterr().out
    assert open_bundle(tmp_path / "b").manifest.precision == "fp32"


def test_what_ships_is_what_was_scored_and_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same graph, with its bias correction; as an engine, on images that no plan was chosen on."""
    _made_up_times(monkeypatch)
    scored, shipped, judged = set[str](), list[str](), list[str]()
    real, batches, measure = search_module.compiled, build_module._for_batches, Jury.measure

    def compiled(graph: OnnxGraph, backend: Backend, config: BuildConfig) -> AbstractContextManager[Session]:
        scored.add(graph_sha256(graph.model))
        return real(graph, backend, config)

    def for_batches(graph: OnnxGraph, *rest: Any) -> OnnxGraph:
        shipped.append(graph_sha256(graph.model))
        return batches(graph, *rest)

    def measured(jury: Jury, segmenter: Segmenter) -> Interval:
        found = measure(jury, segmenter)
        judged.append(str(found))
        return found if len(judged) > 1 else replace(found, high=99.0)

    monkeypatch.setattr(search_module, "compiled", compiled)
    monkeypatch.setattr(build_module, "_for_batches", for_batches)
    monkeypatch.setattr(Jury, "measure", measured)
    argv = ["build-engine", "demo", "-o", str(tmp_path / "b"), "--precision", "auto", "--tile", "128"]
    assert deploy.main([*argv, "--max-drop", "50", "--min-agreement", "0", "--max-error", "9"]) == 0
    out, report = capsys.readouterr().out, json.loads((tmp_path / "b" / REPORT).read_text())
    assert set(shipped) <= scored
    assert len(shipped) == len(judged) == 2
    assert "int8 fails (the engine loses" in out
    assert report["shipped"]["plan"] != "int8"
    assert (report["shipped"]["images"], report["shipped"]["fresh"]) == (4, True)
    assert "4 image(s) that nothing was decided on" in out
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted((*FILES, MANIFEST))
