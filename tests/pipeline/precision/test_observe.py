"""Statistics of tensors inside a graph, against numpy on what ONNX Runtime computes for the same tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import pipeline.precision.observe as observe
from calib.data.scenes import render
from calib.ranges.collector import Collector, Observed
from calib.ranges.windows import CalibrationSet, draw_windows
from engines.errors import DeployError
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import Source, SourceOptions, load_source
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph, from_model
from pipeline.precision.calibrate import graph_of
from pipeline.precision.observe import collect, moved_tensors, quantizable_tensors, split

TILING = Tiling(64, 96, 48, 64)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source("tests.models:tiny", (64, 96), SourceOptions())


@pytest.fixture(scope="module")
def graph(source: Source) -> OnnxGraph:
    return graph_of(source)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    folder = tmp_path_factory.mktemp("photos")
    for seed, size in enumerate(((64, 96), (100, 150), (40, 70))):
        Image.fromarray(render(seed, *size).image).save(folder / f"{seed}.png")
    return draw_windows([str(folder)], TILING, 5)


def _onnx_runtime(graph: OnnxGraph, names: list[str], chosen: CalibrationSet, spec: ModelSpec) -> dict[str, np.ndarray]:
    """Each tensor of all windows, stacked, in float64."""
    model = ir.to_proto(graph.model)
    del model.graph.output[:]
    inside = [name for name in names if name != "image"]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inside)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    windows = [window for _, window in chosen.inputs(spec, TILING)]
    runs = [dict(zip(inside, session.run(None, {"image": window}), strict=True)) for window in windows]
    runs = [{"image": window, **run} for window, run in zip(windows, runs, strict=True)]
    return {name: np.stack([run[name] for run in runs]).astype(np.float64) for name in names}


def test_statistics_equal_numpys(graph: OnnxGraph, source: Source, chosen: CalibrationSet) -> None:
    observed = quantizable_tensors(graph, every=True)
    tensors = collect(graph, chosen, source.spec, TILING, observed).ranges("max")
    truth = _onnx_runtime(graph, [item.name for item in observed], chosen, source.spec)
    for item in observed:
        ours, values = tensors[item.name], truth[item.name]
        close = {"rel": 1e-4, "abs": 1e-5 * np.abs(values).max()}  # OpenVINO's float32 against ONNX Runtime's
        assert (ours.low, ours.high) == (pytest.approx(values.min(), **close), pytest.approx(values.max(), **close))
        assert ours.rms == pytest.approx(math.sqrt(np.square(values).mean()), **close)
        assert ours.amax == pytest.approx(np.abs(values).max(), **close)
        if item.channel_axis is None:
            assert ours.channel_amax is None
            continue
        channels = np.moveaxis(values, item.channel_axis, 0).reshape(values.shape[item.channel_axis], -1)
        assert ours.channel_amax == pytest.approx(np.abs(channels).max(1), **close)
        assert ours.channel_mean == pytest.approx(channels.mean(1), **close)


def test_inputs_of_linear_and_conv_are_found(graph: OnnxGraph) -> None:
    """Every product with constant weights and no other: counted from the nodes, attention left out."""
    weights, nodes = set(graph.model.graph.initializers), ir.to_proto(graph.model).graph.node
    layers = [node for node in nodes if node.op_type in ("MatMul", "Gemm", "Conv") and node.input[1] in weights]
    observed = {item.name: item for item in quantizable_tensors(graph)}
    assert set(observed) == {node.input[0] for node in layers}
    for node in layers:
        assert observed[node.input[0]].channel_axis == (-3 if node.op_type == "Conv" else -1)
    products = sum(node.op_type == "MatMul" for node in nodes)
    assert products - sum(node.op_type == "MatMul" for node in layers) == 8  # two in each of four attentions


def test_every_float_activation_is_covered(graph: OnnxGraph, source: Source, chosen: CalibrationSet) -> None:
    observed = quantizable_tensors(graph, every=True)
    assert not {item.name for item in observed} & set(graph.model.graph.initializers)
    tensors, moved = collect(graph, chosen, source.spec, TILING, observed).ranges("percentile"), moved_tensors(graph)
    names = [str(value.name) for node in graph.model.graph for value in node.outputs]
    assert {moved.get(name, name) for name in names} <= set(tensors)
    truth = _onnx_runtime(graph, names, chosen, source.spec)
    for name in names:
        assert tensors[moved.get(name, name)].high == pytest.approx(truth[name].max(), rel=1e-4, abs=1e-4)


def test_small_budgets_change_nothing(graph: OnnxGraph, source: Source, chosen: CalibrationSet) -> None:
    observed = quantizable_tensors(graph)
    once = collect(graph, chosen, source.spec, TILING, observed).ranges("entropy")
    effort = observe.Effort()
    split_up = collect(graph, chosen, source.spec, TILING, observed, budget=150_000, effort=effort).ranges("entropy")
    assert effort.passes > 3
    assert list(once) == list(split_up)
    for name in once:
        assert split_up[name].amax == pytest.approx(once[name].amax, rel=1e-3)


def test_groups_stay_under_the_budget() -> None:
    shapes = {f"t{i}": (1, size) for i, size in enumerate((10, 20, 5, 100, 1, 1, 30))} | {"u": None}
    groups = split([Observed(name) for name in shapes], shapes, 4 * 35)
    assert [[item.name for item in group] for group in groups] == [
        ["t0", "t1", "t2"],
        ["t3"],
        ["t4", "t5", "t6"],
        ["u"],
    ]


class _Stop(KeyboardInterrupt):
    pass


@pytest.fixture(scope="module")
def whole(
    graph: OnnxGraph, source: Source, chosen: CalibrationSet, tmp_path_factory: pytest.TempPathFactory
) -> Collector:
    """Every activation in several passes, without an interruption."""
    state = tmp_path_factory.mktemp("whole") / ".ranges.npz"
    observed = quantizable_tensors(graph, every=True)
    collector = collect(graph, chosen, source.spec, TILING, observed, state=state, budget=800_000, save_every_s=0)
    assert not state.exists()
    assert len(collector.done) > 1
    return collector


@pytest.mark.parametrize("after", [1, 4, 7])
def test_interrupted_and_continued_is_bit_identical(
    graph: OnnxGraph,
    source: Source,
    chosen: CalibrationSet,
    whole: Collector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    observed = quantizable_tensors(graph, every=True)
    state, lines = tmp_path / ".ranges.npz", []

    def run() -> Collector:
        return collect(
            graph, chosen, source.spec, TILING, observed, state=state, budget=800_000, save_every_s=0,
            log=lambda step, text: lines.append(f"{step} {text}"),
        )  # fmt: skip

    update, count = Collector.update, 0

    def interrupted(self: Collector, tensors: dict[str, np.ndarray], image: str) -> None:
        nonlocal count
        count += 1
        if count > after:  # as Ctrl-C in the middle of a window
            self.statistics[next(iter(tensors))].update(next(iter(tensors.values())))
            raise _Stop
        update(self, tensors, image)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "update", interrupted)
        with pytest.raises(_Stop):
            run()
    assert state.exists()
    continued = run()
    assert f"continued after {after} of" in lines[-1]
    assert not list(tmp_path.iterdir())
    for method in ("max", "percentile", "entropy", "mse"):
        assert continued.ranges(method) == whole.ranges(method)


def test_states_of_other_runs_are_not_continued(
    graph: OnnxGraph, source: Source, chosen: CalibrationSet, tmp_path: Path
) -> None:
    state, lines = tmp_path / "state.npz", []
    observed = quantizable_tensors(graph)
    collector = collect(graph, chosen, source.spec, TILING, observed)
    for content in (b"", b"PK\x03\x04 cut off", None):
        collector.save(state)
        if content is not None:
            state.write_bytes(content)
        other = replace(chosen, photographs=tuple(replace(each, sha256="0" * 64) for each in chosen.photographs))
        collect(graph, other, source.spec, TILING, observed, state=state, log=lambda s, text: lines.append(text))
        assert not state.exists()
    assert ["not used" in line for line in lines] == [True, True, True]
    assert "another model, data set, seed" in lines[2]


def _chain(scale: float, power: float = 1.0) -> OnnxGraph:
    """image -> Mul -> Log or Pow -> Conv: activations that can be made infinite, NaN or zero."""
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["scaled"]),
        helper.make_node("Pow", ["scaled", "power"], ["raised"]),
        helper.make_node("Conv", ["raised", "weight"], ["logits"], kernel_shape=[1, 1]),
    ]
    constants = {"scale": scale, "power": power}
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    weights.append(numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight"))
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 64, 96))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 2, 64, 96))], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return from_model(ir.from_proto(model), ())


@pytest.mark.parametrize(("scale", "power"), [(1e30, 3.0), (1.0, 0.5)], ids=["infinite", "nan"])
def test_values_that_are_not_finite_are_named(
    source: Source, chosen: CalibrationSet, scale: float, power: float, tmp_path: Path
) -> None:
    bad = _chain(scale, power)
    state = tmp_path / "state.npz"
    with pytest.raises(DeployError, match=r"tensor raised, the first in the graph's order: .*0\.png"):
        collect(bad, chosen, source.spec, TILING, quantizable_tensors(bad, every=True), state=state, save_every_s=0)
    assert not state.exists()


def test_tensors_that_are_zero_throughout_are_named(source: Source, chosen: CalibrationSet) -> None:
    dead = _chain(0.0)
    collector = collect(dead, chosen, source.spec, TILING, quantizable_tensors(dead))
    with pytest.raises(DeployError, match=r"tensor raised is zero in all 5 window\(s\)"):
        collector.ranges("max")
    unseen = collect(dead, chosen, source.spec, TILING, [Observed("raised", histogram=False)])
    assert unseen.ranges("max")["raised"].amax > 0


def test_wrong_tensors_are_refused(graph: OnnxGraph, source: Source, chosen: CalibrationSet) -> None:
    for observed in ([], [Observed("nothing")]):
        with pytest.raises(DeployError, match="expected float32 tensors of the graph"):
            collect(graph, chosen, source.spec, TILING, observed)


def test_two_exports_have_one_fingerprint(graph: OnnxGraph) -> None:
    again = graph_of(load_source("tests.models:tiny", (64, 96), SourceOptions()))
    assert graph_sha256(again.model) == graph_sha256(graph.model)
    assert quantizable_tensors(again, every=True) == quantizable_tensors(graph, every=True)


def test_fingerprint_is_of_what_is_computed(graph: OnnxGraph) -> None:
    def changed(change: str) -> str:
        model = onnx.ModelProto.FromString(ir.to_proto(graph.model).SerializeToString())
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        weight = next(item for item in model.graph.initializer if item.name == conv.input[1])
        if change == "notes":
            model.producer_name, model.doc_string, conv.doc_string, conv.name = "x", "y", "z", "n"
            del model.graph.value_info[:]
            values = numpy_helper.to_array(weight)
            weight.ClearField("raw_data")
            weight.float_data.extend(values.ravel().tolist())
        elif change == "weight":
            values = numpy_helper.to_array(weight).copy()
            values.flat[3] += 1e-6
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        elif change == "name":
            conv.output[0] += "_"
        elif change == "attribute":
            next(item for item in conv.attribute if item.name == "pads").ints[0] += 1
        return graph_sha256(ir.from_proto(model))

    assert changed("notes") == graph_sha256(graph.model)
    assert len({changed(what) for what in ("weight", "name", "attribute", "none")}) == 4
