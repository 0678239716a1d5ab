"""The forms that serve NVIDIA's compiler: exact wherever they are applied, and what they leave alone they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.graph.export import export, simplify, trace
from pipeline.graph.forms import (
    FORMS,
    linear_from_map,
    linear_to_map,
    norm_on_map,
    norm_on_shared_map,
    query_bias,
    split_queries,
)
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.rewrites import apply_rule, apply_rules, attention_bias, single_head
from tests import models
from tests.pipeline.graph import form_kinds
from tests.pipeline.graph.drawn import ints, seeds
from tests.pipeline.graph.near_kinds import Drawn
from tests.pipeline.graph.test_rewrites import TOLERANCE, Net, check, declined, in_float64, ops

GRAPHS = 250  # of each kind


def formed(graph: OnnxGraph, *others: ModuleType) -> OnnxGraph:
    for form in (*others, *FORMS):
        graph = apply_rule(graph, form)
    return graph


@pytest.mark.parametrize("kind", form_kinds.KINDS, ids=lambda kind: kind.__name__)
def test_values_stay(kind: Callable[[Net], Drawn]) -> None:
    applied = left_alone = 0
    for seed in seeds(GRAPHS):
        net = Net(1, 3, 4 + seed % 3, 3 + seed % 4)
        net.rng = np.random.default_rng([seed, form_kinds.KINDS.index(kind)])
        try:
            out, readers = kind(net)
            graph = net.graph(net.add("Identity", out), *readers)
        except DeployError:
            continue  # no map comes out
        final = formed(graph, attention_bias, single_head)
        places = sum(step.places for step in final.history)
        applied, left_alone = applied + (places > 0), left_alone + (places == 0)
        before, after = in_float64(graph), in_float64(final)
        np.testing.assert_allclose(
            after, before, rtol=0, atol=TOLERANCE * max(1, np.abs(before).max()), err_msg=f"seed {seed}"
        )
    assert min(applied, left_alone) > GRAPHS // 20, (applied, left_alone)  # both are met, or nothing is tested


@pytest.mark.parametrize("name", ["tiny", "tiny_conv_head", "tiny_transformers"])
def test_segformer_takes_every_form(name: str) -> None:
    """One for each block or stage; the depthwise convolution then stands between two convolutions on the map."""
    before = apply_rules(simplify(export(trace(getattr(models, name)(), (64, 96)))))[-1]
    after = formed(before)
    places = {step.rule: step.places for step in after.history[len(before.history) :]}
    blocks = Counter(ops(before))["Softmax"]
    assert places[linear_to_map.NAME] == places[linear_from_map.NAME] == blocks
    assert places[norm_on_map.NAME] == blocks + 1  # before each Mix-FFN, after the last stage
    assert places[norm_on_shared_map.NAME] == 3  # which the next stage and the decoder read
    window = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)
    expected = run_onnx(before, [window])
    np.testing.assert_allclose(run_onnx(after, [window]), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_measured_tensors_keep_their_names() -> None:
    """Ranges go by name: what a Linear made, what a normalisation made, what attention mixed."""
    before = apply_rules(simplify(export(trace(models.tiny(), (64, 96)))))[-1]
    names = {value.name for node in formed(before).model.graph for value in node.outputs}
    gone = {
        value.name: node.op_type for node in before.model.graph for value in node.outputs if value.name not in names
    }
    assert set(gone.values()) <= {"MatMul", "Add", "Transpose", "Reshape", "LayerNormalization"}
    values = [node for node in before.model.graph if node.op_type in ("Softmax", "Conv", "Erf")]
    assert not [node.outputs[0].name for node in values if node.outputs[0].name in gone]


def _attention(net: Net, heads: int = 1, axis: int = -1, key_bias: tuple[int, ...] = (4,)) -> str:
    tokens = net.add("Transpose", net.add("Reshape", "image", net.constant(ints(1, 3, 24))), perm=[0, 2, 1])

    def part(perm: list[int], bias: tuple[int, ...] = (4,)) -> str:
        linear = net.add("Add", net.add("MatMul", tokens, net.weight(3, 4)), net.weight(*bias))
        return net.add("Transpose", net.add("Reshape", linear, net.constant(ints(1, 24, heads, 4 // heads))), perm=perm)

    q, k, v = part([0, 2, 1, 3]), part([0, 2, 3, 1], key_bias), part([0, 2, 1, 3])
    mixed = net.add("MatMul", net.add("Softmax", net.add("MatMul", q, k), axis=axis), v)
    joined = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.constant(ints(1, 24, 4)))
    out = net.add("Add", net.add("MatMul", joined, net.weight(4, 5)), net.weight(5))
    return net.add("Reshape", net.add("Transpose", out, perm=[0, 2, 1]), net.constant(ints(1, 5, 4, 6)))


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_bias(heads: int) -> None:
    net = Net(1, 3, 4, 6)
    graph = net.graph(_attention(net, heads))
    after = check(graph, attention_bias, places=1)
    assert Counter(ops(graph))["Add"] - Counter(ops(after))["Add"] == 2


def test_attention_bias_that_differs_by_key_stays() -> None:
    net = Net(1, 3, 4, 6)
    graph = net.graph(_attention(net, key_bias=(24, 4)))
    after = check(graph, attention_bias, places=1)  # that of the values
    assert Counter(ops(graph))["Add"] - Counter(ops(after))["Add"] == 1


def test_softmax_over_the_queries_keeps_its_biases() -> None:
    net = Net(1, 3, 4, 6)
    declined(net.graph(_attention(net, axis=2)), attention_bias, "nothing in the graph looks like it")


@pytest.mark.parametrize("heads", [1, 2])
def test_query_bias(heads: int) -> None:
    """What is left of three biases is one number a key; where that of the keys stays, nothing is done."""
    net = Net(1, 3, 4, 6)
    graph = net.graph(_attention(net, heads))
    declined(graph, query_bias, "looks like it")
    after = check(apply_rule(graph, attention_bias), query_bias, places=1)
    added = next(node for node in after.model.graph if node.op_type == "Add")
    assert tuple(added.inputs[1].shape) == (1, heads, 1, 24)


def _projected(net: Net, heads: int, width: int = 4) -> str:
    """As `_attention`, with values without a bias and a projection to `width`."""
    tokens = net.add("Transpose", net.add("Reshape", "image", net.constant(ints(1, 3, 24))), perm=[0, 2, 1])
    q, k, v = (
        net.add(
            "Transpose",
            net.add("Reshape", net.add("MatMul", tokens, net.weight(3, 4)), net.constant(ints(1, 24, heads, -1))),
            perm=perm,
        )
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    mixed = net.add("MatMul", net.add("Softmax", net.add("MatMul", q, k), axis=-1), v)
    joined = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1, 3]), net.constant(ints(1, 24, 4)))
    out = net.add("Add", net.add("MatMul", joined, net.weight(4, width)), net.weight(width))
    return net.add("Reshape", net.add("Transpose", out, perm=[0, 2, 1]), net.constant(ints(1, width, 4, 6)))


def test_single_head() -> None:
    net = Net(1, 3, 4, 6)
    graph = net.graph(_projected(net, heads=1))
    after = check(graph, single_head, places=1)
    assert Counter(ops(graph))["MatMul"] - Counter(ops(after))["MatMul"] == 1


@pytest.mark.parametrize(("heads", "width"), [(2, 4), (1, 5)])
def test_single_head_leaves_several_heads_and_other_widths(heads: int, width: int) -> None:
    net = Net(1, 3, 4, 6)
    declined(net.graph(_projected(net, heads, width)), single_head, "looks like it")


def test_split_queries() -> None:
    net = Net(1, 3, 4, 6)
    graph = net.graph(_attention(net))
    after = apply_rule(graph, split_queries)
    assert after.history[-1].places == 1
    window = np.random.default_rng(0).standard_normal((1, 3, 4, 6)).astype(np.float32)
    np.testing.assert_array_equal(in_float64(after), in_float64(graph))
    np.testing.assert_allclose(run_onnx(after, [window]), run_onnx(graph, [window]), rtol=0, atol=1e-6)


def test_two_heads_are_left_as_they_are() -> None:
    net = Net(1, 3, 4, 6)
    declined(net.graph(_attention(net, heads=2)), split_queries, "nothing in the graph looks like it")


def _norm(net: Net, *sizes: tuple[int, ...], **attributes: object) -> str:
    tokens = net.add("Transpose", net.add("Reshape", "image", net.constant(ints(1, 3, 24))), perm=[0, 2, 1])
    normed = net.add("LayerNormalization", tokens, net.weight(3), net.weight(3), **attributes)
    turned = net.add("Transpose", normed, perm=[0, 2, 1])
    maps = [net.add("Reshape", turned, net.constant(ints(*size))) for size in sizes]
    return net.add("Add", maps[0], net.add("ReduceMean", maps[-1], keepdims=1))


@pytest.mark.parametrize("opset", [17, 18])
def test_norm_on_map(opset: int) -> None:
    net = Net(1, 3, 4, 6)
    graph = net.graph(_norm(net, (1, 3, 4, 6), (1, 3, 4, 6), epsilon=0.1))
    if opset == 17:
        for node in graph.model.graph:  # whose reductions take their axes as an attribute
            assert node.op_type != "ReduceMean" or len(node.inputs) == 1
        graph.model.opset_imports[""] = 17
    after = check(graph, norm_on_shared_map, places=1)
    assert "LayerNormalization" not in ops(after)


def test_norm_that_becomes_two_maps_of_two_sizes_stays() -> None:
    net = Net(1, 3, 4, 6)
    declined(net.graph(_norm(net, (1, 3, 4, 6), (1, 3, 6, 4))), norm_on_shared_map, "maps of several sizes")
