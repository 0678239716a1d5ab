"""Where 8 bits stand depends on what they are built for, and is what that compiler makes something of."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from engines.backends import get_backend
from engines.backends.tensorrt.backend import TensorRTFamily
from engines.contract import Float32
from engines.errors import DeployError
from engines.roofline.boards import BOARDS
from engines.roofline.kernels import KernelPlan
from pipeline.graph.forms import query_bias
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import stored
from pipeline.graph.rewrites import apply_rule, apply_rules
from pipeline.graph.surgery import output_name
from pipeline.precision.lower import draft, prepare_int8
from pipeline.precision.placement import board_of, placement_of
from pipeline.precision.placement.cost import paying
from pipeline.precision.plan import EIGHT_BIT, PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8
from pipeline.request import Int8Options, LowerOptions
from tests.pipeline.precision.blocks import mix_ffn, up_head, vit_block
from tests.pipeline.precision.max_ranges import ranges_from_windows
from tests.pipeline.precision.placement import Placement

RTX = "tensorrt_rtx"
ORIN = "AGX Orin 64GB"
Build = Callable[[], OnnxGraph]
compiled = pytest.mark.skipif(
    importlib.util.find_spec(RTX) is None, reason="TensorRT-RTX, whose kernels are read, is not installed"
)


def windows() -> list[Float32]:
    return [np.random.default_rng(seed).standard_normal((1, 3, 256, 256)).astype(np.float32) for seed in (1, 2)]


def planned(graph: OnnxGraph, backend: str, board: str = ORIN, kind: str = "int8", rest: str = "fp16") -> PrecisionPlan:
    origin = prepare_int8(graph, rest)
    options = Int8Options(kind=kind, backend=backend, board=board)
    return plan_int8(origin, ranges_from_windows(origin, windows()[:1]), rest, options)


def layers(plan: PrecisionPlan) -> dict[str, bool]:
    """The 8-bit layers: whether their weight has a scale for each channel."""
    return {node.output: node.fine for node in plan.nodes if node.precision in EIGHT_BIT}


def lowered(graph: OnnxGraph, precision: str, backend: str = RTX, board: str = ORIN) -> OnnxGraph:
    options = LowerOptions(rest="fp16", int8=Int8Options(backend=backend, board=board))
    ranges = ranges_from_windows(prepare_int8(graph, "fp16"), windows())
    return draft(graph, precision, windows()[:1], ranges, options).graph


def kernels(graph: OnnxGraph) -> KernelPlan:
    backend = get_backend(RTX)
    assert isinstance(backend, TensorRTFamily)
    with stored(graph.model) as path:
        return backend.kernel_plan(path)


def test_tensorrt_follows_its_documentation() -> None:
    """Scales for each channel everywhere; kernels that take the activation function along."""
    assert layers(planned(vit_block(), "tensorrt")) == dict.fromkeys(["q", "k", "v", "proj", "fc1", "fc2"], True)
    assert layers(planned(mix_ffn(), "tensorrt")) == {"fc1": True, "fc2": True}
    assert layers(planned(up_head(), "tensorrt")) == {"first": True, "second": True}


def test_openvino_quantises_what_it_did() -> None:
    """By measured times: nothing is left out for bytes, and no board is asked."""
    plan = planned(mix_ffn(), "openvino", board="")
    assert layers(plan) == {"fc1": True, "fc2": True}
    assert not any("roofline" in node.reason for node in plan.nodes)


def test_rtx_has_one_scale_for_a_convolution_and_leaves_what_would_not_fuse() -> None:
    ffn = planned(mix_ffn(), RTX)
    assert layers(ffn) == {"fc1": False}  # fc2 stands behind the GELU that fuses with the depthwise convolution
    reasons = {node.output: node.reason for node in ffn.nodes}
    assert "depthwise" in reasons["depthwise"]
    assert "not worth it" in reasons["fc2"]
    assert "MB and" in reasons["fc1"]
    assert ORIN in reasons["fc1"]
    assert "dB" in reasons["fc1"]
    vit = layers(planned(vit_block(), RTX))
    assert {"q", "k", "v"} <= vit.keys()
    assert all(vit.values())
    assert layers(planned(up_head(), RTX)) == {"second": False}  # the first one's input is written by a convolution


def test_one_scale_that_costs_too_much_leaves_the_layer() -> None:
    """One channel a hundred times the others: all others fall into one or two steps."""
    graph = mix_ffn()
    weight = next(node for node in graph.model.graph if output_name(node) == "fc1").inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    values = weight.const_value.numpy().copy()
    values[0] *= 100
    weight.const_value = ir.tensor(values, name=weight.name)
    plan = planned(graph, RTX)
    assert "fc1" not in layers(plan)
    assert any(node.output == "fc1" and "dB" in node.reason for node in plan.nodes)
    assert layers(planned(graph, "tensorrt"))["fc1"]


def test_what_pays_depends_on_the_board() -> None:
    """A feed-forward of a ViT trades bytes for multiply-adds: an Orin lacks the latter, a Thor the former."""
    graph = prepare_int8(_wide_mlp(), "fp16")
    candidates = [node for node in graph.model.graph if output_name(node) in ("fc1", "fc2")]
    found = {
        board.name: paying(graph.model, candidates, board, "int8", "fp16", False)[0]
        for board in BOARDS if "int8" in board.peaks
    }  # fmt: skip
    assert set(found["Orin Nano Super"].layers) == {"fc1", "fc2"}
    assert found["AGX Thor"].layers == ()
    assert found["Orin Nano Super"].saved.bytes < 0 < found["Orin Nano Super"].saved.ms


def _wide_mlp() -> OnnxGraph:
    from tests.pipeline.precision import blocks

    block = blocks._Block()
    x = block.conv(blocks._patches(block), blocks.WIDTH, 768, name="wide")
    y = block.op("Softmax", block.tokens(x, 768), axis=-1)
    hidden = block.gelu(block.linear(y, 768, 3072, "fc1"))
    return block.graph(block.map(block.linear(hidden, 3072, blocks.WIDTH, "fc2")))


def test_a_board_that_is_not_known_is_named() -> None:
    with pytest.raises(DeployError, match="--board: got 'RTX 9', expected one of Orin Nano Super"):
        board_of("RTX 9")
    with pytest.raises(DeployError, match="AGX Orin 64GB has no tensor cores for it"):
        planned(mix_ffn(), RTX, kind="fp8")


@pytest.mark.parametrize("build", [vit_block, mix_ffn, up_head])
@pytest.mark.parametrize("backend", [RTX, "tensorrt", "openvino"])
def test_scales_are_where_the_plan_says(build: Build, backend: str) -> None:
    """In the lowered graph: a vector where the plan says so, else a number; the rest keeps NVIDIA's rules."""
    graph = build()
    found = Placement(ir.to_proto(lowered(graph, "int8", backend).model))
    quantised = {name for name, kind in found.quantised().items() if kind == "int8"}
    wanted = layers(planned(graph, backend))
    assert quantised == wanted.keys()
    for node in found.graph.node:
        if node.output[0] in quantised:
            weight = found.maker(node.input[1], "DequantizeLinear")
            assert weight is not None
            assert (found.array(weight.input[1]).ndim == 1) == wanted[node.output[0]]


@compiled
@pytest.mark.parametrize("build", [vit_block, mix_ffn, up_head])
def test_the_compiler_moves_less(build: Build) -> None:
    """Less than in halves, nothing more in FP32, no kernel that only scales or quantises, every attention fused."""
    graph = build()
    half, eight = kernels(lowered(graph, "fp16")), kernels(lowered(graph, "int8"))
    assert eight.macs_by_type["int8"] > 0
    assert eight.bytes < half.bytes
    assert eight.fp32_written <= half.fp32_written
    assert eight.fused_attentions == eight.attentions == half.fused_attentions
    assert not [kernel.name for kernel in eight.kernels if _only_scales(kernel.name)]


@compiled
def test_projections_without_a_bias_that_an_attention_reads_stay_in_halves() -> None:
    """In the form for GPUs that has none.  Where INT8 takes them, as OpenVINO does, this compiler moves more."""
    graph = apply_rule(apply_rules(vit_block())[-1], query_bias)
    reasons = {node.output: node.reason for node in planned(graph, RTX).nodes}
    assert all("no bias, and an attention reads it" in reasons[name] for name in "qkv")
    everywhere = planned(graph, "openvino")
    assert {"q", "k", "v"} <= layers(everywhere).keys()
    half, eight = kernels(lowered(graph, "fp16")), kernels(lowered(graph, "int8", "openvino"))
    assert eight.bytes > half.bytes
    assert len(eight.kernels) > len(half.kernels)
    fp8 = {node.output: node.reason for node in planned(graph, RTX, "AGX Thor", kind="fp8").nodes}
    assert not any("an attention reads it" in fp8[name] for name in "qkv")  # which is in 8 bits itself


@compiled
def test_scales_a_channel_would_be_written_as_fp32() -> None:
    """Why a convolution has one scale there: as TensorRT's documentation wants it, this compiler writes FP32."""
    fine, one = kernels(lowered(mix_ffn(), "int8", "tensorrt")), kernels(lowered(mix_ffn(), "int8"))
    assert fine.fp32_written > one.fp32_written + 4 * 256 * 64 * 64
    assert fine.bytes > one.bytes


@compiled
@pytest.mark.parametrize("build", [vit_block, mix_ffn, up_head])
def test_the_cost_model_foretells_the_bytes(build: Build) -> None:
    """Within a tenth of what the layers themselves move."""
    graph = build()
    origin = prepare_int8(graph, "fp16")
    plan = planned(graph, RTX)
    chosen = [node for node in origin.model.graph if output_name(node) in layers(plan)]
    saved = sum(
        each.saved.bytes for each in paying(origin.model, chosen, board_of(ORIN), "int8", "fp16", False)
    )  # fmt: skip
    half, eight = kernels(lowered(graph, "fp16")), kernels(lowered(graph, "int8"))
    assert abs((half.bytes - eight.bytes) - saved) < 0.1 * half.bytes


def _only_scales(name: str) -> bool:
    """Whether the generated kernel of this name holds no operation but those of a quantisation or a scale."""
    inside = name.removeprefix("__myl_").partition("_myl")[0]
    for word in ("Min", "Max", "Mul", "Roun", "Cast"):
        inside = inside.replace(word, "")
    return name.startswith("__myl_") and not inside and "__myl_Cast_" not in name  # that is a border of precisions


def test_the_names_of_lone_kernels_are_known() -> None:
    """As TensorRT-RTX 1.7 calls them; a kernel that also normalises is not one of them."""
    assert _only_scales("__myl_MulMinMaxRounCast_myl0_2")
    assert not _only_scales("__myl_ResiMulMinMaxRounCast_myl0_161")


def test_the_rules_of_a_target_are_told() -> None:
    assert {placement_of(name).source for name in (RTX, "tensorrt", "openvino")} == {
        "the kernels of TensorRT-RTX 1.7",
        "NVIDIA's documentation of TensorRT, not measured",
        "OpenVINO's measured times",
    }  # fmt: skip
    assert placement_of("torch") == placement_of("openvino")
