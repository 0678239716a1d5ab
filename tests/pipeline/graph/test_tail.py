"""The tail of a decoder found at the end of a graph, and the graph cut before it, held against the whole graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.contract import pack
from pipeline.graph.batches import for_any_batch
from pipeline.graph.export import export, simplify, trace
from pipeline.graph.onnx_graph import OnnxGraph, open_onnx, run_onnx
from pipeline.graph.rewrites import apply_rules
from pipeline.graph.tail.cut import cut
from pipeline.graph.tail.ending import find
from tests.models import tiny

SIZE = (64, 96)


class Head(nn.Module):
    """A stem for each map, then the ending; `between` is what is put in front of the ReLU, and `after` behind it."""

    def __init__(self, factors: tuple[int, ...] = (4, 8, 16), mode: str = "bilinear", stem: int = 8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.factors, self.mode = factors, mode
        self.stems = nn.ModuleList(nn.Conv2d(3, stem, factor, factor) for factor in factors)
        self.project = nn.ModuleList(nn.Conv2d(stem, 16, 1) for _ in factors)
        self.classify = nn.Conv2d(16, 5, 1)

    def between(self, x: Tensor) -> Tensor:
        return x

    def act(self, x: Tensor) -> Tensor:
        return x.relu()

    def last(self, x: Tensor) -> Tensor:
        return self.classify(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        size = (x.shape[2] // self.factors[0], x.shape[3] // self.factors[0])
        for stem, project in zip(self.stems, self.project, strict=True):
            term = project(stem(x).relu())
            if term.shape[2:] != size:
                options = {} if self.mode == "nearest" else {"align_corners": self.mode == "aligned"}
                mode = "bilinear" if self.mode == "aligned" else self.mode
                term = F.interpolate(term, size=size, mode=mode, **options)
            total = term if total is None else total + term
        assert total is not None
        return self.last(self.act(self.between(total)))


class Gelu(Head):
    def act(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class Wide(Head):
    def last(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.classify.weight.expand(-1, -1, 3, 3), self.classify.bias, padding=1)


class ReadTwice(Head):
    def last(self, x: Tensor) -> Tensor:
        return self.classify(x) + x[:, :5]  # type: ignore[no-any-return]


class SumReadTwice(Head):
    def last(self, x: Tensor) -> Tensor:
        return self.classify(x)  # type: ignore[no-any-return]

    def act(self, x: Tensor) -> Tensor:
        return x.relu() + 0.1 * x


class Scaled(Head):
    def between(self, x: Tensor) -> Tensor:
        return 2 * x


def _graph(module: nn.Module) -> OnnxGraph:
    return simplify(export(trace(module.eval(), SIZE)))


def _windows(count: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [rng.standard_normal((1, 3, *SIZE)).astype(np.float32) for _ in range(count)]


def _logits(model: ir.Model, found: object, window: np.ndarray) -> np.ndarray:
    session = open_onnx(model)
    names = sorted(output.name for output in session.get_outputs())
    maps = pack(session.run(names, {session.get_inputs()[0].name: window}))
    return found.tail.logits(maps, window.shape[0])  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="module")
def segformer() -> OnnxGraph:
    return apply_rules(_graph(tiny()))[-1]


def test_the_rewritten_segformer_ends_in_tokens_and_keeps_its_logits(segformer: OnnxGraph) -> None:
    found = find(segformer)
    assert not isinstance(found, str)
    shape = found.tail.shape
    assert (shape.height, shape.width) == (16, 24)
    assert shape.maps == ((8, 12), (4, 6), (2, 3))
    assert 0 < shape.inputs < shape.channels
    model = cut(segformer, found, segformer)
    assert not isinstance(model, str)
    assert [output.name for output in model.graph.outputs] == ["tail_0", "tail_1", "tail_2", "tail_3"]
    kinds = [output.producer().op_type for output in model.graph.outputs]  # type: ignore[union-attr]
    assert kinds == ["Identity", "Add", "Add", "Add"]  # no transposition: tokens as the encoder has them
    assert not any(node.op_type == "Resize" for node in model.graph)
    (window,) = _windows()
    expected = run_onnx(segformer, [window])
    assert np.abs(_logits(model, found, window) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_graph_itself_is_left_alone(segformer: OnnxGraph) -> None:
    before = len(segformer.model.graph)
    found = find(segformer)
    assert not isinstance(found, str)
    cut(segformer, found, segformer)
    assert len(segformer.model.graph) == before
    assert len(segformer.model.graph.outputs) == 1


def test_a_batch_goes_through_a_cut_graph(segformer: OnnxGraph) -> None:
    windows = _windows(2)
    neutral = for_any_batch(segformer, windows)
    found = find(segformer)
    assert not isinstance(found, str)
    model = cut(neutral, found, segformer)
    assert not isinstance(model, str)
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape((2, *value.shape[1:]))
    expected = run_onnx(segformer, windows)
    got = _logits(model, found, np.concatenate(windows))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("module", "maps", "inputs"),
    [
        (Head(), 2, 8),
        (Head((4, 8)), 1, 8),
        (Head((4, 8, 8, 16)), 3, 8),
        (Head((4, 4, 8)), 2, 8),  # of two maps of full size one is projected, the other is a map
        (Head((4, 8, 16), stem=16), 3, 0),  # as many channels before the projection as after it: nothing to gain
    ],
)
def test_any_such_ending_is_cut_and_keeps_its_logits(module: Head, maps: int, inputs: int) -> None:
    graph = _graph(module)
    found = find(graph)
    assert not isinstance(found, str), found
    assert (len(found.tail.shape.maps), found.tail.shape.inputs) == (maps, inputs)
    model = cut(graph, found, graph)
    assert not isinstance(model, str)
    (window,) = _windows()
    expected = run_onnx(graph, [window])
    assert np.abs(_logits(model, found, window) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Gelu(), "does not end in a 1x1 convolution of a ReLU"),
        (Wide(), "does not end in a 1x1 convolution of a ReLU"),
        (ReadTwice(), "does not end in a 1x1 convolution of a ReLU"),
        (SumReadTwice(), "does not end in a 1x1 convolution of a ReLU"),
        (Scaled(), "no map is upsampled"),
        (Head((4,)), "no map is upsampled"),
        (Head((4, 4)), "no map is upsampled"),
        (Head(mode="nearest"), "interpolates nearest, expected linear"),
        (Head(mode="bicubic"), "interpolates cubic, expected linear"),
        (Head(mode="aligned"), "samples at align_corners, expected half_pixel"),
        (Head((4, 8) + (16,) * 5), "6 resized maps, expected 5"),
        (Head((8, 4)), "expected an upsampling"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_nearly_such_an_ending_is_left_alone(module: nn.Module, reason: str) -> None:
    found = find(_graph(module))
    assert isinstance(found, str)
    assert reason in found


def _resize(graph: OnnxGraph) -> ir.Node:
    return next(node for node in graph.model.graph if node.op_type == "Resize")


def _antialias(node: ir.Node) -> None:
    node.attributes["antialias"] = ir.AttrInt64("antialias", 1)


def _axes(node: ir.Node) -> None:
    node.attributes["axes"] = ir.AttrInt64s("axes", [0, 1, 2, 3])


def _policy(node: ir.Node) -> None:
    node.attributes["keep_aspect_ratio_policy"] = ir.AttrString("keep_aspect_ratio_policy", "not_larger")


def _other_scales(node: ir.Node) -> None:
    """Scales that give the same sizes, rounded down, but sample elsewhere."""
    scales = ir.tensor(np.array([1, 1, 2.01, 2.01], np.float32), name="other")
    value = ir.Value(name="other", const_value=scales, shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT))
    assert node.graph is not None
    node.graph.register_initializer(value)  # type: ignore[union-attr]
    node.resize_inputs(3)
    node.replace_input_with(2, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_antialias, "with antialias or axes"),
        (_axes, "with antialias or axes"),
        (_policy, "its output size is not given for all four axes"),
        (_other_scales, "its scales are not those of the sizes"),
    ],
)
def test_a_resize_that_samples_otherwise_is_left_alone(change: Callable[[ir.Node], None], reason: str) -> None:
    graph = _graph(Head())
    assert not isinstance(find(graph), str)
    change(_resize(graph))
    assert reason in str(find(graph))


@pytest.mark.parametrize(
    ("kind", "maps", "reason"),
    [
        (ir.DataType.FLOAT16, 1, "its maps are of 2 types"),
        (ir.DataType.BFLOAT16, 4, "its maps are bfloat16, expected float or float16"),
    ],
)
def test_maps_of_types_that_no_kernel_takes_stay_in_the_engine(
    segformer: OnnxGraph, kind: ir.DataType, maps: int, reason: str
) -> None:
    found = find(segformer)
    assert not isinstance(found, str)
    model = segformer.model.clone()
    for node in model.graph:
        for value in node.outputs:
            if value.name in found.maps[:maps]:
                value.type = ir.TensorType(kind)
    typed = OnnxGraph(model, segformer.input_shape, segformer.output_shape)
    assert cut(segformer, found, typed) == reason
