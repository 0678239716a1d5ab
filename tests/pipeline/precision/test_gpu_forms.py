"""Which forms are taken: what the compiler says, what a clock says, what is taken where nobody can be asked."""

from __future__ import annotations

import numpy as np
import pytest

from engines.backends import get_backend
from engines.contract import BuildConfig
from pipeline.graph.export import export, simplify, trace
from pipeline.graph.forms import FORMS, linear_to_map, split_queries
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.rewrites import apply_rule, apply_rules
from pipeline.precision import forms
from pipeline.precision.forms import ByClock, ByPlan, carried, formed, judge_for, typed, unasked
from pipeline.precision.plan_int8 import plan_int8
from tests import models
from tests.pipeline.precision.max_ranges import ranges_from_windows

SIZE = (64, 96)


@pytest.fixture(scope="module")
def graph() -> OnnxGraph:
    return apply_rules(simplify(export(trace(models.tiny(), SIZE))))[-1]


@pytest.fixture(scope="module")
def window() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, *SIZE)).astype(np.float32)


def silent(step: str, text: str) -> None:
    """A log that keeps nothing."""


@pytest.fixture(scope="module")
def everything(graph: OnnxGraph, window: np.ndarray) -> forms.Formed:
    return formed(graph, unasked("in a test"), [window], run_onnx(graph, [window]), silent)


def test_a_cpu_keeps_its_form(window: np.ndarray) -> None:
    assert judge_for(get_backend("openvino"), "bf16", BuildConfig(), window, False, silent) is None
    assert judge_for(get_backend("torch_cuda"), "fp16", BuildConfig(), window, False, silent) is None  # reads no graph


def test_what_the_compiler_says_decides(graph: OnnxGraph, window: np.ndarray) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, which says what it makes of a graph, is not installed")
    said: list[str] = []
    judge = judge_for(get_backend("tensorrt_rtx"), "fp16", BuildConfig(), window, False, lambda step, text: None)
    assert isinstance(judge, ByPlan)
    made = formed(graph, judge, [window], run_onnx(graph, [window]), lambda step, text: said.append(text))
    plans = [forms.ask(stage, "fp16") for stage in made.stages]
    moved = [plan.bytes for plan in plans]
    assert len(moved) > 2
    assert moved == sorted(moved, reverse=True)
    assert len(plans[-1].kernels) < len(plans[0].kernels)
    assert plans[-1].fused_attentions >= plans[0].fused_attentions
    assert made.steps[0].labels == 1.0
    assert len(made.stages) - 1 == sum("place(s)" in text for text in said)


def test_a_form_that_moves_more_is_not_taken(graph: OnnxGraph, everything: forms.Formed) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX, which says what it makes of a graph, is not installed")
    better, why = ByPlan("fp16", silent)(linear_to_map, everything.graph, graph)
    assert not better
    assert "MB" in why


def test_a_clock_decides_where_engines_run(graph: OnnxGraph, window: np.ndarray) -> None:
    """OpenVINO stands for the device.  Which of the two is faster is not for a test to say."""
    judge = ByClock(get_backend("openvino"), "fp32", BuildConfig(threads=1), window)
    deep = simplify(export(trace(models.tiny(), (256, 384))))
    better, why = ByClock(judge.backend, "fp32", judge.config, np.zeros((1, 3, 256, 384), np.float32))(
        linear_to_map, deep, apply_rules(deep)[-1]
    )
    before, _, after, unit = why.split()[:4]
    assert unit == "ms"
    assert better == (float(after) < float(before)) or before == after, why


def test_nobody_to_ask(monkeypatch: pytest.MonkeyPatch, graph: OnnxGraph, window: np.ndarray) -> None:
    monkeypatch.setattr(forms, "PLANNER", "no_such_package")
    said: list[str] = []
    judge = judge_for(get_backend("tensorrt_rtx"), "fp16", BuildConfig(), window, False, silent)
    assert judge is not None
    made = formed(graph, judge, [window], run_onnx(graph, [window]), lambda step, text: said.append(text))
    places = {step.rule for step in made.graph.history if step.places}
    assert linear_to_map.NAME in places
    assert split_queries.NAME not in places
    assert sum("no_such_package, which could tell, is not installed" in text for text in said) == len(FORMS) - 1


def test_ranges_are_those_of_the_same_values(graph: OnnxGraph, everything: forms.Formed, window: np.ndarray) -> None:
    """Every layer that INT8 takes in the graph that was calibrated it takes in its form, on the same range."""
    measured = ranges_from_windows(graph, [window])
    moved = carried(measured, everything.stages)
    before, after = plan_int8(graph, measured), plan_int8(everything.graph, moved)
    chosen = [[node.reason for node in plan.nodes if node.precision == "int8"] for plan in (before, after)]
    assert len(chosen[0]) == len(chosen[1]) > 10
    amax = [sorted(reason.rpartition(" ")[2] for reason in each) for each in chosen]
    assert amax[0] == amax[1]
    again = ranges_from_windows(everything.graph, [window])
    for name, item in again.tensors.items():
        if name in moved.tensors:
            assert moved.tensors[name].amax == pytest.approx(item.amax, rel=1e-4), name


def test_normalisations_that_are_written_out_stay_in_fp32(everything: forms.Formed) -> None:
    """All of it is one island, or the squares leave the range of half precision."""
    made = typed(everything.graph, "fp16")
    kinds = {
        node.op_type: str(node.outputs[0].dtype) for node in made.model.graph if "norm_on_map" in (node.name or "")
    }
    assert {kinds[op] for op in ("ReduceMean", "Sub", "Sqrt", "Div")} == {"FLOAT"}
    assert apply_rule(everything.graph, linear_to_map).history[-1].places == 0
