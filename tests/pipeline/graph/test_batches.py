"""A graph for one window is made one for any number: PyTorch, which takes any batch, says what each must answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import pipeline.graph.batches
from engines.bundle import open_bundle
from engines.errors import DeployError
from engines.proof.agreement import GATES
from engines.proof.batch_gate import NEUTRAL
from pipeline.build import build_bundle
from pipeline.graph.batches import for_any_batch, neutral, proof
from pipeline.graph.batches.proof import with_batch
from pipeline.graph.batches.walk import Declined
from pipeline.graph.emulate import emulate
from pipeline.graph.export import export, simplify, trace
from pipeline.graph.given import import_onnx
from pipeline.graph.onnx_graph import OnnxGraph, open_onnx, run_onnx
from pipeline.graph.proto import stored
from pipeline.graph.rewrites import apply_rules
from pipeline.precision.lower import lower
from pipeline.request import BuildRequest, LowerOptions
from tests import models
from tests.pipeline.graph.test_rewrites import Net
from tests.pipeline.precision.lowering import exported, graph_of
from tests.pipeline.precision.max_ranges import ranges_from_windows

WINDOW = (64, 96)


def _inputs(shape: tuple[int, ...] = (1, 3, *WINDOW), count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(count)]


def _together(graph: OnnxGraph, inputs: list[np.ndarray]) -> np.ndarray:
    session = open_onnx(with_batch(graph.model, len(inputs)))
    return session.run(None, {session.get_inputs()[0].name: np.concatenate(inputs)})[0]  # type: ignore[no-any-return]


def _check(graph: OnnxGraph, changed: OnnxGraph) -> None:
    """Bit for bit the same for one window, and for 2, 3 and 5 at once what `graph` answers to each."""
    onnx.checker.check_model(ir.to_proto(changed.model), full_check=True)
    with stored(changed.model) as path:
        assert not onnx.load(path).graph.value_info
    inputs = _inputs(graph.input_shape)
    alone = run_onnx(graph, inputs)
    assert np.array_equal(run_onnx(changed, inputs), alone)
    for count in (2, 3, 5):
        np.testing.assert_allclose(_together(changed, inputs[:count]), alone[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("name", ["tiny", "tiny_conv_head", "tiny_pup", "tiny_mla"])
def test_whole_models(name: str, rewritten: bool) -> None:
    module = getattr(models, name)()
    graph = simplify(export(trace(module, WINDOW)))
    graph = apply_rules(graph)[-1] if rewritten else graph
    changed = for_any_batch(graph, _inputs()[:2])
    assert changed.history[-1].rule == NEUTRAL
    assert changed.history[-1].places > 0
    _check(graph, changed)
    with torch.no_grad():
        expected = module(torch.from_numpy(np.concatenate(_inputs()))).numpy()
    np.testing.assert_allclose(_together(changed, _inputs()), expected, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("model", ["tests.models:tiny", "tests.models:tiny_setr"])
def test_lowered_graphs(model: str, precision: str) -> None:
    graph, windows, reference = exported(model, 64)
    ranges = ranges_from_windows(graph, windows) if precision == "int8" else None
    options = LowerOptions(rest="bf16")
    lowered = lower(graph, precision, windows, reference, GATES[precision], lambda s, t: None, ranges, options).graph
    changed = for_any_batch(lowered, windows)
    assert changed.history[-1].declined == ""
    _check(emulate(lowered), emulate(changed))


def test_what_transformers_exports() -> None:
    pytest.importorskip("transformers")
    module = models.tiny_transformers()
    graph = simplify(export(trace(module, WINDOW)))
    for stage in (graph, apply_rules(graph)[-1]):
        changed = for_any_batch(stage, _inputs()[:2])
        _check(stage, changed)
        with torch.no_grad():
            expected = module(torch.from_numpy(np.concatenate(_inputs()))).numpy()
        np.testing.assert_allclose(_together(changed, _inputs()), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["cgnet", "edanet", "fddwnet", "mininetv2"])
def test_real_convolutional_networks(shared_data: Path, name: str) -> None:
    graph = simplify(import_onnx(shared_data / "onnx_cityscapes" / f"{name}_cityscapes.onnx", WINDOW))
    changed = for_any_batch(graph, _inputs()[:1])
    assert changed.history[-1].declined == ""
    inputs = _inputs()[:3]
    alone = run_onnx(graph, inputs)
    np.testing.assert_allclose(_together(changed, inputs), alone, rtol=0, atol=1e-5 * float(np.abs(alone).max()))


class _Foreign(nn.Module):
    """3 -> 8 channels at a quarter of the size, `mix`, and a classifier."""

    def __init__(self, mix: Callable[[Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.embed, self.classify = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 5, 1)
        self.kept = nn.ModuleList(modules)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.mix(self.embed(x)))
        return logits


def _merged_heads(x: Tensor) -> Tensor:
    """Attention over (N * heads, L, d)."""
    n, c, h, w = x.shape
    tokens = x.flatten(2).reshape(n * 2, c // 2, h * w).transpose(1, 2)
    mixed = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
    return mixed.transpose(1, 2).reshape(n, c, h, w)


def _rows(x: Tensor) -> Tensor:
    """A Linear over (N * L, C), as 2-d code has it."""
    n, c, h, w = x.shape
    rows = torch.relu(x.flatten(2).transpose(1, 2).reshape(n * h * w, c))
    return rows.reshape(n, h * w, c).transpose(1, 2).reshape(n, c, h, w)


def _windows(x: Tensor) -> Tensor:
    """Attention inside 2x2 windows, as Swin has it, rolled by one."""
    n, c, h, w = x.shape
    x = torch.roll(x, (1, 1), (2, 3)).permute(0, 2, 3, 1)
    parts = x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    parts = (parts @ parts.transpose(1, 2)).softmax(-1) @ parts
    x = parts.reshape(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return x.permute(0, 3, 1, 2)


def _length_first(x: Tensor) -> Tensor:
    """Attention over (L, N, C), as nn.MultiheadAttention has it inside."""
    n, c, h, w = x.shape
    tokens = x.flatten(2).permute(2, 0, 1)
    heads = tokens.reshape(h * w, n * 2, c // 2).transpose(0, 1)
    mixed = ((heads @ heads.transpose(1, 2)).softmax(-1) @ heads).transpose(0, 1).reshape(h * w, n, c)
    return mixed.permute(1, 2, 0).reshape(n, c, h, w)


def _expanded(x: Tensor) -> Tensor:
    """A constant map concatenated to every window, and a third of it taken away again."""
    n, _, h, w = x.shape
    grid = torch.linspace(-1, 1, w).expand(n, 4, h, w)
    return torch.cat((x, grid), 1)[:, 2:10] * x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("mix", [_merged_heads, _rows, _windows, _length_first, _expanded], ids=lambda f: f.__name__)
def test_what_other_networks_do_with_the_batch(mix: Callable[[Tensor], Tensor]) -> None:
    module = models.randomise(_Foreign(mix))
    graph = simplify(export(trace(module, WINDOW)))
    changed = for_any_batch(graph, _inputs()[:2])
    assert changed.history[-1].declined == ""
    _check(graph, changed)
    with torch.no_grad():
        expected = module(torch.from_numpy(np.concatenate(_inputs()))).numpy()
    np.testing.assert_allclose(_together(changed, _inputs()), expected, atol=2e-5)


def test_multihead_attention_of_torch() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def mix(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed.transpose(1, 2).reshape(x.shape)

    module = models.randomise(_Foreign(mix, attention))
    graph = simplify(export(trace(module, WINDOW)))
    changed = for_any_batch(graph, _inputs()[:2])
    assert changed.history[-1].declined == ""
    _check(graph, changed)


def test_squeezed_and_unsqueezed_batches() -> None:
    """2-d code around a Gemm: (1, L, C) loses its batch and gets it back."""
    net = Net(1, 3, 4, 5)
    tokens = net.add("Transpose", net.add("Reshape", "image", net.constant(np.array([0, 3, -1]))), perm=[0, 2, 1])
    rows = net.add("Squeeze", tokens, net.constant(np.array([0])))
    rows = net.add("Gemm", rows, net.weight(3, 6), net.weight(6))
    back = net.add("Transpose", net.add("Unsqueeze", rows, net.constant(np.array([0]))), perm=[0, 2, 1])
    graph = net.graph(net.add("Reshape", back, net.constant(np.array([1, 6, 4, 5]))))
    _check(graph, for_any_batch(graph, _inputs((1, 3, 4, 5))[:1]))


@pytest.mark.parametrize("sizes", [(8, 10), (7, 9), (1, 3)])
def test_resized_maps_keep_their_sizes(sizes: tuple[int, int]) -> None:
    """(7, 9) of (4, 5): as scales they would be 1.75 and 1.8, and 5 * 1.8 rounds down to 8 in some arithmetic."""
    net = Net(1, 3, 4, 5)
    graph = net.graph(net.resize("image", (1, 3, *sizes)))
    changed = for_any_batch(graph, _inputs((1, 3, 4, 5))[:2])
    assert changed.history[-1].declined == ""
    _check(graph, changed)


def test_a_graph_without_a_batch_in_it_stays_as_it_is() -> None:
    net = Net(1, 3, 4, 5)
    graph = net.graph(net.conv(net.conv("image", 3, 4), 4, 2))
    changed = for_any_batch(graph, _inputs((1, 3, 4, 5))[:2])
    assert changed.history[-1].places == 0
    assert ir.to_proto(changed.model).graph.node == ir.to_proto(graph.model).graph.node


def _across_windows(net: Net) -> str:
    """A softmax over the axis of the windows: for one window it is 1 everywhere."""
    return net.add("Mul", net.conv("image", 3, 5), net.add("Softmax", net.conv("image", 3, 5), axis=0))


def _sum_of_windows(net: Net) -> str:
    """Hidden from a proof by examples, where a Relu leaves few values."""
    summed = net.add("CumSum", net.conv("image", 3, 5), net.constant(np.array(-4)))
    return net.add("Relu", summed)


def _swap_of_windows(net: Net) -> str:
    flat = net.add("Reshape", net.conv("image", 3, 5), net.constant(np.array([5, 20])))
    turned = net.add("LpNormalization", net.add("Transpose", flat, perm=[1, 0]), axis=1)
    return net.add("Reshape", turned, net.constant(np.array([1, 5, 4, 5])))


def _mean_of_windows(net: Net) -> str:
    return net.add("ReduceMean", net.conv("image", 3, 5), net.constant(np.array([0])), keepdims=1)


def _first_window(net: Net) -> str:
    bounds = [net.constant(np.array([value])) for value in (0, 1, 0)]
    return net.add("Slice", net.conv("image", 3, 5), *bounds)


def _constant_of_many(net: Net) -> str:
    flat = net.add("Reshape", "image", net.constant(np.array([3, 4, 5])))
    return net.add("Reshape", net.add("Add", flat, net.weight(3, 4, 5)), net.constant(np.array([1, 3, 4, 5])))


def _windows_across_axes(net: Net) -> str:
    turned = net.add("Transpose", "image", perm=[1, 0, 2, 3])
    return net.add("Transpose", net.add("Reshape", turned, net.constant(np.array([6, 1, 2, 5]))), perm=[1, 0, 2, 3])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_across_windows, "Softmax works along the axis of the windows"),
        (_sum_of_windows, "CumSum works along the axis of the windows"),
        (_swap_of_windows, "LpNormalization works along the axis of the windows"),
        (_mean_of_windows, r"ReduceMean makes \(1, 5, 4, 5\) of one window and \(1, 5, 4, 5\) of 5"),
        (_first_window, r"Slice makes \(1, 5, 4, 5\) of one window"),
        (_constant_of_many, "Add does not take 5 windows"),
        (_windows_across_axes, "puts the windows across two axes"),
    ],
)
def test_what_cannot_be_is_declined_with_a_reason(build: Callable[[Net], str], reason: str) -> None:
    net = Net(1, 3, 4, 5)
    graph = net.graph(build(net))
    same = for_any_batch(graph, _inputs((1, 3, 4, 5))[:2])
    assert same.model is graph.model
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(same.history[-1].declined)


def test_an_operator_that_onnx_does_not_know_is_declined() -> None:
    node = helper.make_node("FusedConv", ["image", "w"], ["logits"], domain="com.microsoft")
    body = helper.make_graph(
        [node], "net", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 4, 5])],
        [onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(body, opset_imports=opsets, ir_version=10))
    graph = OnnxGraph(model, (1, 3, 4, 5), (1, 2, 4, 5))
    with pytest.raises(Declined, match="FusedConv is no operator of ONNX"):
        neutral(graph)


def test_the_proof_sees_a_pass_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the pass to swap heads and windows, shapes alone would not tell."""
    nodes = [
        helper.make_node("Reshape", ["image", "swapped"], ["x"]),
        helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3]),
        helper.make_node("Reshape", ["y", "back"], ["logits"]),
    ]
    right = graph_of(
        [helper.make_node("Identity", ["image"], ["logits"])], {}, (1, 4, 4, 4), (1, 4, 4, 4)
    )  # fmt: skip
    constants = {"swapped": np.array([2, -1, 4, 8]), "back": np.array([-1, 4, 4, 4])}
    wrong = graph_of(nodes, constants, (1, 4, 4, 4), (1, 4, 4, 4))
    monkeypatch.setattr(pipeline.graph.batches, "neutral", lambda graph: wrong)
    declined = for_any_batch(right, _inputs((1, 4, 4, 4))[:2]).history[-1].declined
    assert "differs from the same one alone" in declined or "other logits than before" in declined


def test_one_window_is_told_by_shapes_and_run_where_they_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is run for a batch that nobody asked for; a pass that changes a shape is caught all the same."""
    constants = {"flat": np.array([1, 4, -1]), "back": np.array([1, 4, 4, 4]), "wrong": np.array([1, 2, -1])}
    nodes = [
        helper.make_node("Reshape", ["image", "flat"], ["x"]),
        helper.make_node("Softmax", ["x"], ["y"], axis=1),
        helper.make_node("Reshape", ["y", "back"], ["logits"]),
    ]
    right = graph_of(nodes, constants, (1, 4, 4, 4), (1, 4, 4, 4))
    nodes[0].input[1] = "wrong"
    wrong = graph_of(nodes, constants, (1, 4, 4, 4), (1, 4, 4, 4))
    ran: list[str] = []
    real = proof.run_model
    monkeypatch.setattr(proof, "run_model", lambda model, inputs: (ran.append("window"), real(model, inputs))[1])
    windows = _inputs((1, 4, 4, 4))[:1]
    assert not for_any_batch(right, windows, ()).history[-1].declined
    assert not ran
    monkeypatch.setattr(pipeline.graph.batches, "neutral", lambda graph: wrong)
    assert "one window gives other logits than before" in for_any_batch(right, windows, ()).history[-1].declined
    assert len(ran) == 2


@pytest.fixture
def declining(monkeypatch: pytest.MonkeyPatch) -> None:
    def decline(graph: OnnxGraph) -> OnnxGraph:
        raise Declined("node 7: it cannot be")

    monkeypatch.setattr(pipeline.graph.batches, "neutral", decline)


def test_a_graph_that_declines_is_built_for_one_window_and_refused_for_more(declining: None, tmp_path: Path) -> None:
    from engines.proof.rebuild import rebuild
    from engines.tiling.placement import Tiling

    lines: list[tuple[str, str]] = []
    request = BuildRequest("tests.models:tiny", tmp_path / "b", Tiling(64, 96, 48, 64), backend="openvino")
    with pytest.raises(DeployError, match=r"--batch 2: .*node 7: it cannot be.*build with --batch 1"):
        build_bundle(replace(request, batch=2), lambda *line: lines.append(line))
    assert not list(tmp_path.iterdir())
    build_bundle(request, lambda *line: lines.append(line))
    assert ("batch", f"{NEUTRAL}: declined, node 7: it cannot be") in lines
    history = json.loads((tmp_path / "b" / "report.json").read_text())["history"]
    assert history[-1]["declined"] == "node 7: it cannot be"
    with pytest.raises(DeployError, match=r"--batch 2: .*node 7: it cannot be"):
        rebuild(tmp_path / "b", tmp_path / "c", log=lambda *line: None, batch=2)
    assert open_bundle(tmp_path / "b").manifest.batch == 1
    assert not (tmp_path / "c").exists()
