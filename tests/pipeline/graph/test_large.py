"""A graph of more than 2 GB, which no ModelProto holds in one piece, goes the whole way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pipeline.graph.export
import pipeline.graph.onnx_graph
import pipeline.graph.proto
from engines.proof.agreement import Agreement, Gate
from pipeline.graph.emulate import emulate
from pipeline.graph.export import simplify
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.given import import_onnx
from pipeline.graph.onnx_graph import OnnxGraph, from_model, run_onnx
from pipeline.graph.proto import check, load, save, weight_bytes
from pipeline.graph.rewrites import apply_rules
from pipeline.graph.surgery import Editor
from pipeline.precision.extremes import extremes
from pipeline.precision.islands import plan_float
from pipeline.precision.lower import LowerOptions, lower
from pipeline.precision.lower_float import lower_float, prepare
from tests.pipeline.precision.lowering import exported
from tests.pipeline.precision.max_ranges import ranges_from_windows

_ANY = Gate(1e9, 0.0)  # whether a lowering is good is asked elsewhere
WIDE, NARROW = 16384, 8192  # 0.5 GB of float32 between them


def _large() -> OnnxGraph:
    """image (1, 3, 4, 4) -> four 1x1 convolutions of 0.5 GB on a map of one pixel -> logits (1, 5, 8, 8)."""
    image = ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((1, 3, 4, 4)))
    model = ir.Model(ir.Graph([image], [], nodes=[], opset_imports={"": 18}, name="large"), ir_version=10)
    editor, noise = Editor(model), np.random.default_rng(0).standard_normal(10007, dtype=np.float32)

    def add(op: str, inputs: list[ir.Value | None], *attributes: ir.Attr) -> ir.Value:
        return editor.insert(None, op, inputs, name=op.lower(), shape=None, attributes=attributes)

    def conv(x: ir.Value, *shape: int) -> ir.Value:
        weight = np.resize(noise, shape)
        weight /= np.float32(np.prod(shape[1:])) ** np.float32(0.5)
        return add("Conv", [x, editor.initializer(weight, "weight")], ir.AttrInt64s("strides", list(shape[2:])))

    x = add("Relu", [conv(image, NARROW, 3, 4, 4)])
    for outputs, inputs in ((WIDE, NARROW), (NARROW, WIDE)) * 2:
        x = add("Relu", [conv(x, outputs, inputs, 1, 1)])
    sizes = editor.initializer(np.array([1, 16, 8, 8], np.int64), "sizes")
    resized = add("Resize", [conv(x, 16, NARROW, 1, 1), None, None, sizes], ir.AttrString("mode", "linear"))
    logits = conv(resized, 5, 16, 1, 1)
    logits.name, logits.shape = "logits", ir.Shape((1, 5, 8, 8))
    model.graph.outputs.append(logits)
    return from_model(model, ())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_small_graph_goes_the_way_of_a_large_one(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a ModelProto held no more than 10 kB: the same fingerprint, the same figures."""
    graph, windows, reference = exported("tests.models:tiny", 64)
    plain = apply_rules(graph)[-1]
    ranges = ranges_from_windows(plain, windows)
    for module in (pipeline.graph.proto, pipeline.graph.export, pipeline.graph.onnx_graph):
        monkeypatch.setattr(module, "LARGEST", 10_000)
    again = apply_rules(simplify(graph))[-1]
    assert "more than onnxsim takes" in again.history[2].declined
    assert graph_sha256(again.model) == graph_sha256(plain.model)
    save(again.model, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert graph_sha256(load(tmp_path / "model.onnx")) == graph_sha256(plain.model)
    assert import_onnx(tmp_path / "model.onnx", (64, 64)).output_shape == plain.output_shape

    def lowered(origin: OnnxGraph) -> tuple[Agreement, ...]:
        options = LowerOptions(rest="fp16")
        return lower(origin, precision, windows, reference, _ANY, lambda *_: None, ranges, options).agreements

    made = lowered(again)
    monkeypatch.undo()
    assert made == lowered(plain)


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    windows = [np.random.default_rng(1).standard_normal((1, 3, 4, 4), dtype=np.float32)]
    graph = _large()
    assert weight_bytes(graph.model) > onnx.checker.MAXIMUM_PROTOBUF
    reference = run_onnx(graph, windows)
    graph = simplify(graph)
    assert graph.history[-1].declined == "4 weight(s) of 2.1 GB in all, more than onnxsim takes"
    graph = apply_rules(graph)[-1]
    assert sum(step.places for step in graph.history) == 2  # before the upsampling, and then into one
    np.testing.assert_allclose(run_onnx(graph, windows), reference, atol=1e-5 * np.abs(reference).max())

    check(graph.model)
    save(graph.model, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < 1e6
    fingerprint = graph_sha256(graph.model)
    origin = prepare(graph, "fp16")
    lowered = lower_float(origin, plan_float(origin, "fp16", extremes(origin, windows)))
    del graph, origin
    again = import_onnx(tmp_path / "model.onnx", (4, 4))
    assert graph_sha256(again.model) == fingerprint
    del again
    for file in tmp_path.iterdir():
        file.unlink()

    check(lowered.model)
    save(lowered.model, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # half of it is one file again
    np.testing.assert_allclose(run_onnx(emulate(lowered), windows), reference, atol=1e-2 * np.abs(reference).max())
