"""torch -> ONNX -> simplified, and the user's own .onnx: right shapes, right numbers, clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from engines.errors import DeployError
from pipeline.graph.export import OPSET, export, simplify, trace
from pipeline.graph.given import import_onnx
from pipeline.graph.onnx_graph import run_onnx
from tests import models

WINDOW = (64, 96)


def _batch(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 3, *WINDOW), dtype=np.float32)


def test_export_and_simplify_keep_the_logits() -> None:
    model, x = models.tiny(), _batch()
    with torch.no_grad():
        reference = model(torch.from_numpy(x)).numpy()
    exported = export(trace(model, WINDOW))
    simplified = simplify(exported)
    for graph in (exported, simplified):
        assert graph.output_shape == (1, 5, 16, 24)
        np.testing.assert_allclose(run_onnx(graph, [x]), reference, atol=1e-5)
    assert [step.rule.split()[0] for step in simplified.history] == ["torch.onnx", "onnxsim"]


def test_layer_norm_is_one_node_and_batch_norm_is_folded() -> None:
    graph = simplify(export(trace(models.tiny(), WINDOW)))
    ops = [node.op_type for node in graph.model.graph]
    norms = sum(isinstance(module, torch.nn.LayerNorm) for module in models.tiny().modules())
    assert ops.count("LayerNormalization") == norms
    assert "BatchNormalization" not in ops
    assert "Gemm" not in ops  # stays MatMul + Add, the form that later passes and engines match
    assert graph.model.opset_imports[""] == OPSET


def test_nothing_of_the_building_machine_is_in_the_graph() -> None:
    data = ir.to_proto(export(trace(models.tiny(), WINDOW)).model).SerializeToString()
    assert str(Path(torch.__file__).parent).encode() not in data
    assert str(Path(models.__file__).parent).encode() not in data


def test_a_branch_on_data_is_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeployError, match=r"torch\.export cannot capture the model: .*data-dependent") as error:
        trace(models.data_dependent(), WINDOW)
    assert "\n" not in str(error.value)
    assert "graph" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["cgnet", "edanet", "fddwnet", "mininetv2"])
def test_real_convolutional_networks_import_at_a_static_window(shared_data: Path, name: str) -> None:
    import onnxruntime as ort

    path = shared_data / "onnx_cityscapes" / f"{name}_cityscapes.onnx"
    graph = simplify(import_onnx(path, (64, 96)))
    assert graph.input_shape == (1, 3, 64, 96)
    assert graph.output_shape == (1, 19, 64, 96)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": _batch()})[0]
    np.testing.assert_allclose(run_onnx(graph, [_batch()]), expected, atol=2e-4 * np.abs(expected).max())


def _conv(inputs: list, outputs: list, out: str = "y") -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 1, 1), [0.1] * 12)
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], [out])], "g", inputs, outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _value(name: str, shape: list, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_free_dimensions_are_filled_in(tmp_path: Path) -> None:
    onnx.save(_conv([_value("x", ["n", 3, "h", "w"])], [_value("y", ["n", 4, "h", "w"])]), tmp_path / "m.onnx")
    assert import_onnx(tmp_path / "m.onnx", WINDOW).output_shape == (1, 4, *WINDOW)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([_value("x", [1, 3, 32, 32])], [_value("y", [1, 4, 32, 32])], "give the matching --tile"),
        ([_value("x", [1, 3, 64, 96]), _value("z", [1])], [_value("y", [1, 4, 64, 96])], "expected one image"),
        ([_value("x", [3, 64])], [_value("y", [4, 64])], "rank 2"),
        ([_value("x", [4, 3, 64, 96])], [_value("y", [4, 4, 64, 96])], r"expected \[1, 3, 64, 96\]; export it for one"),
    ],
)
def test_foreign_interfaces_are_refused(tmp_path: Path, inputs: list, outputs: list, message: str) -> None:
    model = _conv(inputs, outputs)
    if len(inputs) > 1:  # one that is read
        model.graph.node[0].input.append("z")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(DeployError, match=message):
        import_onnx(tmp_path / "m.onnx", WINDOW)


def test_two_outputs_are_refused(tmp_path: Path) -> None:
    model = _conv([_value("x", [1, 3, *WINDOW])], [_value("y", [1, 4, *WINDOW]), _value("z", [1, 4, *WINDOW])])
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(DeployError, match=r"outputs: y \(1, 4, 64, 96\), z \(1, 4, 64, 96\); give --output-name"):
        import_onnx(tmp_path / "m.onnx", WINDOW)


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    model = _conv([_value("x", [1, 3, *WINDOW])], [_value("z", [1, 4])])
    model.graph.node.append(helper.make_node("GlobalAveragePool", ["y"], ["p"]))
    model.graph.node.append(helper.make_node("Flatten", ["p"], ["z"]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(DeployError, match=r"output 'z': got float \[1, 4\]"):
        import_onnx(tmp_path / "m.onnx", WINDOW)


@pytest.mark.parametrize("data", [b"", b"not an onnx file at all", b"\x08\x08\x12\x07pytorch"])
def test_foreign_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(DeployError, match=r"m\.onnx"):
        import_onnx(tmp_path / "m.onnx", WINDOW)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    onnx.save(_conv([_value("x", [1, 3, *WINDOW])], [_value("y", [1, 4, *WINDOW])]), tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    for length in range(1, len(data), 7):
        (tmp_path / "m.onnx").write_bytes(data[:length])
        with pytest.raises(DeployError):
            import_onnx(tmp_path / "m.onnx", WINDOW)


def test_a_graph_that_fails_only_when_it_runs_is_an_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["x", "index"], ["y"], axis=1)]
    index = helper.make_tensor("index", TensorProto.INT64, [1], [7])  # of three channels
    graph = helper.make_graph(nodes, "g", [_value("x", [1, 3, *WINDOW])], [_value("y", [1, 1, *WINDOW])], [index])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    with pytest.raises(DeployError, match=r"ONNX Runtime refuses the graph.*out of data bounds"):
        run_onnx(import_onnx(tmp_path / "m.onnx", WINDOW), [_batch()])
