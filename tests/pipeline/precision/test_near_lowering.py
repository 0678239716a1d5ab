"""Drawn networks are lowered: each stays within the error that its types allow, and not by a tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from calib.ranges.ranges import Ranges
from engines.errors import DeployError
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.types import FLOATS
from pipeline.precision.extremes import extremes
from pipeline.precision.islands import plan_float
from pipeline.precision.lower_float import lower_float, prepare
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import NodePlan, PrecisionPlan
from pipeline.precision.quantise import weight_scales
from tests.pipeline.graph.drawn import seeds
from tests.pipeline.precision.drawn_layers import network
from tests.pipeline.precision.error_bounds import Analysis, Unbounded, exceeds
from tests.pipeline.precision.max_ranges import ranges_from_windows
from tests.pipeline.precision.placement import LAYERS, Placement

GRAPHS = 40


def window(graph: OnnxGraph, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(graph.input_shape, np.float32)


def drawn(seed: int) -> OnnxGraph | None:
    try:
        return network(seed)
    except DeployError:
        return None  # of a rank that is no network's


@pytest.mark.parametrize("islands", [True, False], ids=["islands", "everything"])
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_half_types_stay_within_their_rounding(kind: str, islands: bool) -> None:
    compared = 0
    for seed in seeds(GRAPHS):
        graph = drawn(seed)
        if graph is None:
            continue
        origin, x = prepare(graph, kind), window(graph, seed)
        plan = plan_float(origin, kind, extremes(origin, [x]))
        lowered = lower_float(origin, plan if islands else plan.with_everything())
        onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
        try:
            value, bound = Analysis(origin, kind, largest=FLOATS[kind].largest).run(x.astype(np.float64))
        except Unbounded:
            continue
        assert not exceeds(run_onnx(emulate(lowered), [x]), value, bound), f"seed {seed}"
        compared += 1
    assert compared > GRAPHS // 2


def every_layer(graph: OnnxGraph, ranges: Ranges) -> PrecisionPlan:
    """All that can be quantised, also what the plan would leave alone: more that can go wrong."""
    layers = [node for node in graph.model.graph if node.op_type in LAYERS and node.inputs[1].is_initializer()]  # type: ignore[union-attr]
    fit = [node for node in layers if str(node.inputs[0].name) in ranges.tensors]  # type: ignore[union-attr]
    return PrecisionPlan("int8", tuple(NodePlan(str(node.outputs[0].name), node.op_type, "int8", "") for node in fit))


def off_by(seed: int) -> str | None:
    """What `exceeds` says of one int8 network; None where there is nothing to compare."""
    graph = drawn(seed)
    if graph is None:
        return None
    origin, x = prepare(graph, "fp32", qdq=True), window(graph, seed)
    ranges = ranges_from_windows(origin, [x])
    plan = every_layer(origin, ranges)
    lowered = lower_int8(origin, plan, ranges)
    onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
    layers = frozenset(node.output for node in plan.nodes)
    try:
        value, bound = Analysis(origin, "fp32", ranges, layers).run(x.astype(np.float64))
    except Unbounded:
        return None
    return exceeds(run_onnx(lowered, [x]), value, bound)


def test_int8_stays_within_its_steps() -> None:
    found = {seed: off_by(seed) for seed in seeds(2 * GRAPHS)}
    compared = [text for text in found.values() if text is not None]
    assert [(seed, text) for seed, text in found.items() if text] == []
    assert len(compared) > GRAPHS


def test_the_bound_notices_a_scale_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights clipped at half of their range: values stay plausible, and the bound is broken."""

    def halved(*args: Any) -> np.ndarray:
        return weight_scales(*args) / 2

    monkeypatch.setattr("pipeline.precision.lower_int8.weight_scales", halved)
    assert sum(bool(off_by(seed)) for seed in range(20)) > 3


def test_pairs_of_drawn_networks_stand_where_the_rules_want_them() -> None:
    """But for layers that read a product of their own: the rule on bias and activation functions is the plan's."""
    for seed in seeds(GRAPHS):
        graph = drawn(seed)
        if graph is None:
            continue
        origin = prepare(graph, "fp32", qdq=True)
        ranges = ranges_from_windows(origin, [window(graph, seed)])
        lowered = lower_int8(origin, every_layer(origin, ranges), ranges)
        broken = [line for line in Placement(ir.to_proto(lowered.model)).violations() if "stands between" not in line]
        assert broken == [], f"seed {seed}"
