"""What a graph types as fp32 runs in fp32, or the build says otherwise; int8 sums are right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends import get_backend
from engines.contract import BuildConfig, Float32, Layer
from pipeline.graph.onnx_graph import run_onnx
from tests.pipeline.precision.lowering import graph_of

ROOT = Path(__file__).parents[4]
OPENVINO = get_backend("openvino")
HALVES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
node = helper.make_node
ISLANDS = {
    "Softmax": ([node("Softmax", ["x"], ["y"], axis=1)], "Softmax"),
    "resize": ([node("Resize", ["x", "", "scales"], ["y"], mode="linear")], "Interpolate"),
    "biased product": ([node("MatMul", ["x", "w"], ["u"]), node("Add", ["u", "b"], ["y"])], "FullyConnected"),
    "scaled product": ([node("MatMul", ["x", "w"], ["u"]), node("Mul", ["u", "s"], ["y"])], "FullyConnected"),
    "product behind a transpose": (
        [node("Transpose", ["x"], ["u"], perm=[0, 1, 3, 2]), node("MatMul", ["u", "w"], ["y"])],
        "FullyConnected",
    ),
}


@pytest.fixture(params=list(HALVES))
def half(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    lacking = OPENVINO.supports(name) or OPENVINO.remark(name)
    if lacking:
        pytest.skip(lacking)
    return name


def _island(nodes: list[onnx.NodeProto], half: str) -> onnx.ModelProto:
    """Two convolutions in `half`, and `nodes` from x to y in fp32 between them."""
    rng = np.random.default_rng(0)
    kind, dtype = HALVES[half]
    around = [
        node("Cast", ["image"], ["in"], to=kind),
        node("Conv", ["in", "first"], ["out"]),
        node("Cast", ["out"], ["x"], to=TensorProto.FLOAT),
        *nodes,
        node("Cast", ["y"], ["again"], to=kind),
        node("Conv", ["again", "last"], ["low"]),
        node("Cast", ["low"], ["logits"], to=TensorProto.FLOAT),
    ]
    shapes = {"first": (32, 3, 1, 1), "last": (8, 32, 1, 1)}
    constants = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    constants["w"] = rng.standard_normal((16, 16), np.float32) / 4
    constants |= {"b": np.ones(16, np.float32), "s": np.float32(0.3), "scales": np.float32([1, 1, 2, 2])}
    read = {name for each in around for name in each.input}
    side = 32 if "scales" in read else 16
    constants = {name: value for name, value in constants.items() if name in read}
    body = helper.make_graph(
        around, "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 16, 16))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 8, side, side))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    opset = helper.make_opsetid("", 22)  # the first where Conv takes BFLOAT16
    return helper.make_model(body, opset_imports=[opset], ir_version=10)


def _built(model: onnx.ModelProto, precision: str, x: Float32) -> tuple[list[Layer], Float32, list[str]]:
    """The layers as they run, their answer to `x`, and what the build said."""
    said: list[str] = []
    config = BuildConfig(precision, 1, log=lambda step, text: said.append(text))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        blob = OPENVINO.build(path, config)
    with OPENVINO.load(blob, config) as session:
        return OPENVINO.layers(blob, config, x, 3), session.run(x).copy(), said


@pytest.mark.parametrize("island", ISLANDS)
def test_an_island_runs_in_fp32(island: str, half: str) -> None:
    nodes, kind = ISLANDS[island]
    layers, _, said = _built(_island(nodes, half), half, np.ones((1, 3, 16, 16), np.float32))
    assert not said
    ran = {layer.type: layer.precision for layer in layers}
    assert ran["Convolution"] == half
    assert ran[kind] == "fp32"


def test_an_island_that_the_plugin_would_lower_is_computed_in_fp32_with_all_else(half: str) -> None:
    """LogSoftmax is decomposed; with f16 its parts are typed by then, with bf16 they are not."""
    nodes = [node("LogSoftmax", ["x"], ["y"], axis=1)]
    layers, _, said = _built(_island(nodes, half), half, np.ones((1, 3, 16, 16), np.float32))
    ran = {layer.precision for layer in layers if layer.type in ("Convolution", "Reduce")}
    if half == "bf16":
        assert "is computed in fp32" in said[0]
        assert ran == {"fp32"}
    else:
        assert not said
        assert {layer.precision for layer in layers if layer.type == "Reduce"} == {"fp32"}


@pytest.mark.parametrize(("width", "stride", "channels"), [(8, 8, 32), (4, 4, 48), (8, 3, 16), (3, 1, 32)])
def test_an_int8_convolution_over_few_channels_is_computed_right(width: int, stride: int, channels: int) -> None:
    """OpenVINO 2026.4.1 on AMX is wrong by its whole size where the width is even."""
    rng = np.random.default_rng(0)
    zero, scale = np.int8(0), np.float32(1 / 16)
    nodes = [
        node("Conv", ["image", "first"], ["a"]),
        node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        node("DequantizeLinear", ["w8", "per", "zeros"], ["w"], axis=0),
        node("Conv", ["x", "w"], ["logits"], strides=[stride, stride]),
    ]
    constants = {
        "first": rng.standard_normal((channels, 3, 1, 1), np.float32),
        "w8": rng.integers(-127, 128, (32, channels, width, width), np.int8),
        "per": rng.uniform(0.5, 1, 32).astype(np.float32) / 127, "zeros": np.zeros(32, np.int8),
        "zero": zero, "scale": scale,
    }  # fmt: skip
    side = (24 - width) // stride + 1
    graph = graph_of(nodes, constants, (1, 3, 24, 24), (1, 32, side, side))
    x = rng.standard_normal((1, 3, 24, 24), np.float32)
    layers, got, _ = _built(ir.to_proto(graph.model), "int8", x)
    wanted = run_onnx(graph, [x])
    assert np.abs(got - wanted).mean() < 1e-2 * np.abs(wanted).mean()
    assert any(layer.precision == "int8" for layer in layers)


@pytest.mark.parametrize(("asked", "group", "taken"), [(0, None, None), (1, None, 1), (0, 1, 1), (2, 1, 2)])
def test_threads_are_openvinos_choice_unless_the_user_or_a_control_group_says(
    asked: int, group: int | None, taken: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    from engines.backends.openvino import openvino as wrapper

    model = helper.make_model(
        helper.make_graph(
            [node("Relu", ["image"], ["logits"])], "test",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 16, 16))],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 3, 16, 16))],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=10,
    )  # fmt: skip
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr(wrapper, "quota", lambda: group)
    config = BuildConfig("fp32", asked)
    with OPENVINO.load(OPENVINO.build(tmp_path / "model.onnx", config), config) as session:
        compiled = session._request.get_compiled_model()  # type: ignore[attr-defined]
        found = compiled.get_property("INFERENCE_NUM_THREADS")
    core = openvino.Core()
    own = core.compile_model(core.read_model(tmp_path / "model.onnx"), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    assert found == (own.get_property("INFERENCE_NUM_THREADS") if taken is None else taken)


def test_a_user_without_a_home_has_openvino_too() -> None:
    """As in a container that was given a number for a user: OpenVINO's import asks for the home folder."""
    code = """
import os, pwd

def nobody(uid):
    raise KeyError(uid)

pwd.getpwuid = nobody
os.environ.pop("HOME")
from engines.backends import get_backend
print(get_backend("openvino").version())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("openvino 2")
    assert not done.stderr
