"""FP8: E4M3 as ONNX and NVIDIA's compiler have it, emulated by the gate like every other type."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from engines.backends import get_backend
from engines.backends.tensorrt.backend import TensorRTFamily
from engines.gpu.info import GpuInfo
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.proto import stored
from pipeline.precision.attention import attention_products
from pipeline.precision.lower import draft, prepare_int8
from pipeline.precision.quantise import LARGEST, dequantise, to_fp8, weight_scales
from pipeline.request import Int8Options, LowerOptions
from tests.pipeline.precision.blocks import vit_block
from tests.pipeline.precision.lowering import graph_of
from tests.pipeline.precision.max_ranges import ranges_from_windows
from tests.pipeline.precision.test_targets import RTX, compiled, windows

OPTIONS = LowerOptions(rest="fp16", int8=Int8Options(backend=RTX, board="H100 SXM"))


def lowered(graph: OnnxGraph, images: list[np.ndarray], options: LowerOptions = OPTIONS) -> OnnxGraph:
    return draft(graph, "fp8", images, ranges_from_windows(prepare_int8(graph, options.rest), images), options).graph


def test_rounding_is_that_of_the_onnx_reference() -> None:
    """Ties, subnormals, both zeros and what lies beyond 448, where ONNX saturates and a plain cast gives NaN."""
    values = np.concatenate([
        np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 30,
        np.array([0.0, -0.0, 448, 464, 1e6, -1e6, 2.0**-9, 2.0**-10, 3 * 2.0**-10, 17, 19, 1e-9], np.float32),
    ])  # fmt: skip
    scale = np.float32(0.25)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    graph = helper.make_graph(
        nodes, "q", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [len(values)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(values)])],
        [helper.make_tensor("s", TensorProto.FLOAT, [], [scale]), zero],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": values})
    got = dequantise(to_fp8(values, scale), scale)
    np.testing.assert_array_equal(got, wanted)
    assert np.isfinite(got).all()
    assert np.abs(got).max() == LARGEST["fp8"] * scale == float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max) * scale


def _small() -> tuple[OnnxGraph, list[np.ndarray]]:
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v", "c"], ["d"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "u"], ["logits"], kernel_shape=[1, 1]),
    ]
    constants = {
        "w": rng.standard_normal((32, 3, 1, 1)).astype(np.float32),
        "v": rng.standard_normal((64, 32, 3, 3)).astype(np.float32) / 17,
        "c": rng.standard_normal(64).astype(np.float32),
        "u": rng.standard_normal((4, 64, 1, 1)).astype(np.float32),
    }
    images = [rng.standard_normal((1, 3, 12, 12)).astype(np.float32) for _ in range(2)]
    return graph_of(nodes, constants, (1, 3, 12, 12), (1, 4, 12, 12)), images


def test_the_gate_rounds_as_the_reference_does() -> None:
    """The whole lowered graph, every tensor rounded: ONNX Runtime beside ONNX's own evaluator."""
    graph, images = _small()
    options = LowerOptions(rest="fp16", int8=Int8Options(backend="tensorrt", board="H100 SXM"))
    rounded = emulate(lowered(graph, images, options))
    kinds = [node.op_type for node in rounded.model.graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2
    (wanted,) = ReferenceEvaluator(ir.to_proto(rounded.model)).run(None, {"image": images[0]})
    got = run_onnx(rounded, images[:1])
    np.testing.assert_allclose(got, wanted, atol=2e-3 * np.abs(wanted).max())
    exact = run_onnx(graph, images[:1])
    error = np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2))
    assert 1e-3 < error < 5e-2  # three bits of mantissa, and it is not the float graph


def test_weights_are_the_nearest_e4m3_of_their_scale() -> None:
    graph, images = _small()
    model = ir.to_proto(lowered(graph, images).model)
    held = {each.name: each for each in model.graph.initializer}
    weights = [each for each in held.values() if each.data_type == TensorProto.FLOAT8E4M3FN and len(each.dims) == 4]
    assert len(weights) == 1
    values = onnx.numpy_helper.to_array(weights[0]).astype(np.float32)
    assert np.abs(values).max() == LARGEST["fp8"]  # all of the range is used
    original = next(v for v in graph.model.graph.initializers.values() if v.name == "v")
    assert original.const_value is not None
    weight = original.const_value.numpy()
    scale = weight_scales(weight, None, "fp16", "fp8")
    np.testing.assert_array_equal(values, np.clip(weight / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn))


def test_attention_is_quantised_as_a_whole() -> None:
    """Q, K, V and the softmax, whose scale is 1/448; ranges of Q, K and V are measured, no calibration has them."""
    graph = vit_block()
    (pair,) = attention_products(graph.model)
    model = ir.to_proto(lowered(graph, windows()).model)
    makers = {name: node for node in model.graph.node for name in node.output}
    held = {each.name: each for each in model.graph.initializer}
    (scores, mixed) = (makers[str(node.outputs[0].name)] for node in pair)
    steps = [_quantiser(makers, name) for name in (*scores.input, *mixed.input)]
    softmax = next(node.output[0] for node in model.graph.node if node.op_type == "Softmax")
    assert steps[2].input[0] in (softmax, f"{softmax}__fp16")
    assert float(onnx.numpy_helper.to_array(held[steps[2].input[1]])) == pytest.approx(1 / 448, rel=1e-3)


def _quantiser(makers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto:
    """The QuantizeLinear from which the product's input `name` comes."""
    node = makers[name]
    while node.op_type in ("Cast", "DequantizeLinear"):
        node = makers[node.input[0]]
    assert node.op_type == "QuantizeLinear"
    return node


def test_int8_leaves_attention_alone() -> None:
    graph = vit_block()
    ranges = ranges_from_windows(prepare_int8(graph, "fp16"), windows())
    plan = draft(graph, "int8", windows()[:1], ranges, OPTIONS).report["plan"]["nodes"]
    attention = [node for node in plan if "both operands are activations" in node["reason"]]
    assert [node["precision"] for node in attention] == ["fp16", "fp16"]


@compiled
def test_the_compiler_computes_in_fp8() -> None:
    """The layers and the attention, in one kernel; nothing written as FP32 that was not."""
    graph, backend = vit_block(), get_backend(RTX)
    assert isinstance(backend, TensorRTFamily)
    eight = lowered(graph, windows())
    half = draft(graph, "fp16", windows()[:1], None, OPTIONS).graph
    with stored(eight.model) as one, stored(half.model) as other:
        plan, before = backend.kernel_plan(one), backend.kernel_plan(other)
    assert plan.fused_attentions == plan.attentions == 1
    assert next(kernel for kernel in plan.kernels if kernel.attention).computes_in == "fp8"
    assert plan.macs_by_type["fp8"] > 0.8 * plan.macs
    assert plan.bytes < before.bytes
    assert plan.fp32_written <= before.fp32_written


@pytest.mark.parametrize("name", ["openvino", "torch", "onnxruntime"])
def test_a_cpu_refuses_in_one_line(name: str) -> None:
    reason = get_backend(name).supports("fp8")
    assert reason is not None
    assert "\n" not in reason


@pytest.mark.skipif(importlib.util.find_spec(RTX) is None, reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize(("sm", "has"), [((8, 7), False), ((8, 6), False), ((8, 9), True), ((12, 0), True)])
def test_gpus_before_ada_have_none(sm: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend(RTX)
    assert isinstance(backend, TensorRTFamily)
    assert backend.supports("fp8") is None  # built ahead, for GPUs elsewhere
    monkeypatch.setattr(type(backend), "_gpu", lambda self: GpuInfo("Some GPU", sm, 13000, 24 << 30, False))
    reason = backend.supports("fp8")
    assert (reason is None) == has
    assert has or (reason is not None and "8.9" in reason and "--precision fp16" in reason)
