"""An INT8 build that fails names the layers that cost most, and with a budget leaves them out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from calib.ranges.ranges import Ranges
from engines.errors import DeployError, GateError
from engines.proof.agreement import GATES
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.precision.leave import Contribution, advice, contributions, expanded, leaving
from pipeline.precision.lower import Lowered, lower, prepare_int8
from pipeline.precision.plan_int8 import plan_int8
from pipeline.request import Int8Options, LowerOptions
from tests.pipeline.precision.lowering import exported
from tests.pipeline.precision.max_ranges import ranges_from_windows

PLAIN = LowerOptions(rest="fp32", smooth=False, bias=False)


@cache
def _clipped() -> tuple[OnnxGraph, Ranges, str]:
    """The demo, ranges of which one is far too narrow, and the layer that reads the tensor which they ruin."""
    graph, windows, _ = exported("demo", 128)
    ranges = ranges_from_windows(graph, windows)
    origin = prepare_int8(graph, "fp32")
    layers = [node.output for node in plan_int8(origin, ranges).nodes if node.precision == "int8"]
    layer = layers[-1]
    node = next(n for n in origin.model.graph if n.outputs[0].name == layer)
    name = str(node.inputs[0].name)
    narrow = replace(ranges.tensors[name], amax=ranges.tensors[name].amax / 200)
    return graph, replace(ranges, tensors={**ranges.tensors, name: narrow}), layer


def _attempt(options: LowerOptions) -> Lowered:
    _, windows, reference = exported("demo", 128)
    graph, ranges, _ = _clipped()
    return lower(graph, "int8", windows, reference, GATES["int8"], lambda s, t: None, ranges, options)


@cache
def _costs() -> list[Contribution]:
    _, windows, reference = exported("demo", 128)
    graph, ranges, _ = _clipped()
    return contributions(graph, ranges, PLAIN, windows[0], reference[:1])


def test_the_layer_that_breaks_a_build_is_named_first() -> None:
    assert _clipped()[2] in _costs()[0].layers
    assert _costs()[0].error > 3 * _costs()[1].error
    assert advice(_costs()).startswith(f"leave the layers out that cost most: --skip {_costs()[0].name} (")


def test_with_a_budget_it_is_left_out() -> None:
    with pytest.raises(GateError) as failed:
        _attempt(PLAIN)
    lines: list[str] = []
    lowered, worst = leaving(failed.value, _attempt, _costs(), PLAIN, lambda step, text: lines.append(text))
    assert lowered.agreements[0].within(GATES["int8"])
    left = {layer for each in worst for layer in each.layers}
    assert _clipped()[2] in left
    planned = {node["output"]: node["precision"] for node in lowered.report["plan"]["nodes"]}
    assert {planned[layer] for layer in left} == {"fp32"}
    assert "int8" in planned.values()
    assert f"next without {_costs()[0].name}" in lines[0]


def test_what_cannot_be_mended_stays_refused() -> None:
    def never(options: LowerOptions) -> Lowered:
        raise GateError("still no")

    with pytest.raises(GateError, match="still no"):
        leaving(GateError("no"), never, _costs(), PLAIN, lambda s, t: None)


def test_skip_takes_layers_and_stretches_of_them() -> None:
    graph, ranges, layer = _clipped()

    def skipped(*names: str) -> tuple[str, ...]:
        return expanded(graph, ranges, replace(PLAIN, int8=Int8Options(skip=names)))

    block = next(each for each in _costs() if len(each.layers) > 1)
    assert skipped(layer) == (layer,)
    assert skipped(block.name) == block.layers
    for wrong in ("nowhere", f"{block.layers[-1]}..{block.layers[0]}", f"{layer}..nowhere"):
        with pytest.raises(
            DeployError, match=r"--skip .*: got no layer of that name that int8 takes, expected .* such as"
        ):
            skipped(wrong)
