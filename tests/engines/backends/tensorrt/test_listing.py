"""The kernels of an engine, from TensorRT's own account: a recorded one everywhere, live ones where it compiles."""

from __future__ import annotations

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends.tensorrt.listing import kernels_of, layers_in
from engines.backends.tensorrt.tensorrt_rtx import backend
from engines.contract import BuildConfig
from engines.errors import DeployError
from engines.roofline.kernels import Kernel, KernelPlan
from pipeline.graph.batches import neutral
from pipeline.graph.macs import count_macs, macs_by_node
from tests.engines.backends.tensorrt.graphs import made
from tests.engines.backends.tensorrt.plans import MACS, RECORDED, node, one_of_each, saved, weights
from tests.engines.conftest import Start
from tests.pipeline.precision.lowering import graph_of

compiles = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: nothing compiles here"
)


def recorded() -> tuple[Kernel, ...]:
    return kernels_of(layers_in(RECORDED.read_text()))


def plan_of(path: Path, nodes: list[onnx.NodeProto], shape: Any, out: Any, **constants: np.ndarray) -> KernelPlan:
    return backend.kernel_plan(saved(graph_of(nodes, constants, shape, out), path / "model.onnx"))


def test_a_recorded_listing() -> None:
    kernels = recorded()
    assert {kernel.layers[0]: kernel.macs for kernel in kernels if kernel.macs} == MACS
    assert {kernel.computes_in for kernel in kernels if kernel.macs} == {"fp16"}
    assert [kernel.name for kernel in kernels if kernel.attention] == ["_gemm_mha_v2_myl0_4"]
    convolution = kernels[1]
    assert (convolution.name, convolution.kind) == ("patches_myl0_1", "correlation")
    assert [(t.shape, t.type) for t in convolution.reads] == [((1, 4, 64, 64), "fp16")]
    assert [(t.shape, t.type) for t in convolution.constants] == [
        ((32, 4, 4, 4), "fp16"),
        ((1,), "fp32"),
        ((1,), "fp32"),
    ]
    assert convolution.bytes == 2 * (4 * 64 * 64 + 32 * 4 * 4 * 4 + 32 * 16 * 16) + 8


@compiles
def test_a_graph_compiled_here_gives_what_was_recorded(tmp_path: Path) -> None:
    """Of another release it may be other kernels: then record it again, and look at what changed."""
    plan = backend.kernel_plan(saved(one_of_each(), tmp_path / "model.onnx"))
    if "1.7.1" not in plan.source:
        pytest.skip(f"the listing was recorded with TensorRT-RTX 1.7.1.116, this is {plan.source}")
    assert [(k.name, k.bytes, k.macs) for k in plan.kernels] == [(k.name, k.bytes, k.macs) for k in recorded()]
    assert (plan.proxy, plan.window, plan.attentions, plan.fused_attentions) == (True, (64, 64), 1, 1)
    assert (plan.unknown, plan.unaccounted) == (0, ())


def test_the_inspectors_account_gives_the_same_kernels() -> None:
    """JSON has the fields that the log has; TensorRT 10 writes the type into a sentence about the format."""
    layers = json.loads(json.dumps(layers_in(RECORDED.read_text())))
    for layer in layers:
        for tensor in (each for key in ("Inputs", "Constants", "Outputs") for each in layer.get(key, [])):
            kind = {"Half": "FP16", "Float": "FP32"}[tensor.pop("Datatype")]
            tensor["Format/Datatype"] = f"Row major linear {kind} format"
    layers.insert(3, {"Name": "wait for the other stream", "LayerType": "wait", "Inputs": [], "Outputs": []})
    assert kernels_of(layers) == recorded()


def test_a_convolution_that_tensorrt_describes_itself() -> None:
    """Layers outside of the compiler have their weights as a count, and their parameters beside them."""
    half = {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
    layer = {
        "Name": "conv", "LayerType": "CaskConvolution", "ParameterType": "Convolution", "Kernel": [3, 3], "Groups": 4,
        "Inputs": [{"Name": "x", "Dimensions": [1, 64, 32, 48], **half}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 32, 16, 24], **half}],
        "Weights": {"Type": "Half", "Count": 4608}, "Bias": {"Type": "Half", "Count": 32},
    }  # fmt: skip
    (kernel,) = kernels_of([layer])
    assert kernel.macs == 32 * 16 * 24 * 16 * 9
    assert kernel.bytes == 2 * (64 * 32 * 48 + 32 * 16 * 24 + 4608 + 32)
    assert kernel.computes_in == "fp16"


@pytest.mark.parametrize(
    ("change", "into"),
    [("Dimensions: [1,4,64,64]", "Dimensions: ?"), ("Datatype: Half", "Datatype: Sixteen"), (", Inputs: [", ", In: [")],
)
def test_what_cannot_be_read_is_said_not_skipped(change: str, into: str) -> None:
    with pytest.raises(DeployError, match="cannot be read; report this"):
        kernels_of(layers_in(RECORDED.read_text().replace(change, into)))


def test_two_products_in_one_kernel_are_not_guessed() -> None:
    layers = layers_in(RECORDED.read_text())
    layers[1]["Name"] = "__myl_CorrReluFc_myl0_1"
    kernel = kernels_of(layers)[1]
    assert kernel.macs is None
    plan = KernelPlan("", True, (64, 64), kernels=(kernel,), attentions=0)
    assert (plan.unknown, plan.macs) == (1, 0)


@compiles
@pytest.mark.parametrize(
    ("weight", "attributes", "shape", "out", "macs"),
    [
        ((32, 16, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, (16, 64, 96), (32, 32, 48), 32 * 32 * 48 * 16 * 9),
        ((16, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 16}, (16, 64, 96), (16, 64, 96), 16 * 64 * 96 * 9),
        ((32, 16, 3, 3), {"pads": [1, 1, 1, 1], "group": 4}, (64, 64, 96), (32, 64, 96), 32 * 64 * 96 * 16 * 9),
    ],
    ids=["strided", "depthwise", "grouped"],
)
def test_multiply_adds_of_convolutions(
    tmp_path: Path, weight: Any, attributes: Any, shape: Any, out: Any, macs: int
) -> None:
    nodes = [node("Conv", ["image", "w"], "logits", **attributes)]
    plan = plan_of(tmp_path, nodes, (1, *shape), (1, *out), w=weights(*weight))
    assert plan.macs == macs
    assert plan.macs_by_type == {"fp32": macs}


@compiles
def test_bytes_of_a_product(tmp_path: Path) -> None:
    """Each tensor once: the image, the weights, two scalars, the logits."""
    plan = plan_of(
        tmp_path, [node("MatMul", ["image", "w"], "logits")], (1, 1, 256, 64), (1, 1, 256, 128), w=weights(64, 128)
    )
    assert plan.bytes == 4 * (256 * 64 + 64 * 128 + 2 + 256 * 128)
    assert plan.fp32_written == 4 * 256 * 128
    assert plan.macs == 256 * 64 * 128


@compiles
def test_multiply_adds_of_products_of_two_maps(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["image"], "t", perm=[0, 1, 3, 2]), node("MatMul", ["image", "t"], "logits")]
    assert plan_of(tmp_path, nodes, (1, 4, 256, 64), (1, 4, 256, 256)).macs == 4 * 256 * 256 * 64


@compiles
def test_a_softmax_over_classes_is_no_attention(tmp_path: Path) -> None:
    nodes = [node("Conv", ["image", "w"], "x"), node("Softmax", ["x"], "logits", axis=1)]
    assert plan_of(tmp_path, nodes, (1, 16, 64, 96), (1, 8, 64, 96), w=weights(8, 16, 1, 1)).attentions == 0


@compiles
@pytest.mark.parametrize("network", ["segformer", "naive", "pup", "mla"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_multiply_adds_are_those_of_the_graph(network: str, precision: str) -> None:
    """But for channels that the compiler pads, and products so small that it unrolls them, which are named."""
    graph = made(network, precision)
    plan = backend.kernel_plan(graph.path)
    wanted = count_macs(graph.graph)
    assert plan.unknown == 0
    assert len(plan.unaccounted) <= (1 if precision != "fp32" else 4)
    padded = next(iter(macs_by_node(graph.graph.model).values())) // 3  # the image gets a fourth channel
    assert 0.98 * wanted <= plan.macs <= 1.01 * wanted + padded
    assert set(plan.macs_by_type) == {"int8": {"int8", "fp16", "fp32"}, "fp32": {"fp32"}}.get(
        precision, {precision, "fp32"}
    )
    assert plan.attentions == {"segformer": 4, "naive": 2, "pup": 2, "mla": 4}[network]


@compiles
def test_two_plans_in_one_process_do_not_mix() -> None:
    """One after the other, and at once; nor does a build that nobody asks for a plan."""
    paths = [made(network, "fp16").path for network in ("segformer", "naive")]
    alone = [backend.kernel_plan(path) for path in paths]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(3) as pool:
        build = pool.submit(backend.build, made("mla", "fp16").path, BuildConfig("fp16"))
        together = list(pool.map(backend.kernel_plan, paths))
        build.result()
    shapes = [[(k.kind, k.bytes, k.macs) for k in plan.kernels] for plan in (*alone, *together)]
    assert shapes[:2] == shapes[2:]


@compiles
def test_a_batch_moves_its_windows_and_reads_its_weights_once(tmp_path: Path) -> None:
    path = saved(neutral(made("naive", "fp16").graph), tmp_path / "model.onnx")
    one, four = backend.kernel_plan(path), backend.kernel_plan(path, batch=4)
    weights_read = sum(tensor.bytes for kernel in one.kernels for tensor in kernel.constants)
    assert (four.macs, four.attentions, four.fused_attentions) == (4 * one.macs, 2, 2)
    assert four.bytes < 4 * one.bytes - 2 * weights_read


@compiles
def test_a_graph_that_is_refused_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"cannot take model\.onnx: Bernoulli node logits") as caught:
        plan_of(tmp_path, [node("Bernoulli", ["image"], "logits")], (1, 3, 8, 8), (1, 3, 8, 8))
    assert "\n" not in str(caught.value)


def test_tensorrt_itself_compiles_on_a_gpu_alone(start: Start, model: Path) -> None:
    with pytest.raises(DeployError, match="TensorRT compiles on a GPU alone; build a bundle there and inspect it"):
        start("10.3.0").backend.kernel_plan(model)


@compiles
def test_a_package_that_does_not_load_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(backend, "sdk", broken)
    with pytest.raises(DeployError, match=r"plan: TensorRT-RTX does not load \(libcudart.*pip install -e '\.\[rtx\]'"):
        backend.kernel_plan(model)


def test_on_a_gpu_the_engine_tells_its_kernels(start: Start, model: Path) -> None:
    """On the stand-in for TensorRT 10: what was compiled there, and how many attentions the graph has."""
    machine = start("10.3.0")
    blob = machine.backend.build(model, BuildConfig(batch=2))
    machine.sdk.world["described"] = layers_in(RECORDED.read_text())
    plan = machine.backend.engine_plan(blob, BuildConfig(), model)
    assert plan.kernels == recorded()
    assert (plan.proxy, plan.source, plan.window) == (False, "TensorRT 10.3.0, the engine itself", (8, 12))
    assert plan.unaccounted == ("conv", "classifier")
    assert machine.gpu.held == 0
