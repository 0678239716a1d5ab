"""What a GPU's engine is given: halves, where that is what its graph makes of them, and the same numbers as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from engines.backends import get_backend
from engines.bundle import MODEL
from engines.contract import Backend, BuildConfig
from engines.proof.rebuild import rebuild
from engines.segmenter import open_segmenter
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.precision.interface import interface_for
from pipeline.request import BuildRequest

RTX, CPU = get_backend("tensorrt_rtx"), get_backend("openvino")
HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def graph(*kinds: int, output_too: bool = False) -> onnx.ModelProto:
    """A sum of as many casts of the image."""
    casts = [helper.make_node("Cast", ["image"], [f"cast{i}"], to=kind) for i, kind in enumerate(kinds)]
    same = [helper.make_node("Cast", [f"cast{i}"], [f"half{i}"], to=HALF) for i in range(len(kinds))]
    total = helper.make_node("Sum", [f"half{i}" for i in range(len(kinds))], ["total"])
    outputs = [helper.make_tensor_value_info("total", HALF, [1, 3, 4, 6])]
    outputs += [helper.make_tensor_value_info("cast0", kinds[0], [1, 3, 4, 6])] if output_too else []
    image = helper.make_tensor_value_info("image", SINGLE, [1, 3, 4, 6])
    made = helper.make_model(
        helper.make_graph([*casts, *same, total], "g", [image], outputs), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 10
    return made


def answer(model: ir.Model, image: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["total"], {"image": image})[0]


@pytest.mark.parametrize("kinds", [(HALF,), (HALF, HALF)])
def test_a_gpu_is_given_halves_that_round_as_the_cast_did(kinds: tuple[int, ...]) -> None:
    before = ir.from_proto(graph(*kinds))
    after = interface_for(RTX, before)
    assert after.graph.inputs[0].dtype == ir.DataType.FLOAT16
    assert before.graph.inputs[0].dtype == ir.DataType.FLOAT, "the graph that was given stays"
    image = np.random.default_rng(0).normal(0, 3, (1, 3, 4, 6)).astype(np.float32)
    assert np.array_equal(answer(after, image.astype(np.float16)), answer(before, image))


@pytest.mark.parametrize(
    ("backend", "model"),
    [
        (CPU, graph(HALF)), (get_backend("torch"), graph(HALF)), (RTX, graph(TensorProto.BFLOAT16)),
        (RTX, graph(SINGLE)), (RTX, graph(HALF, SINGLE)), (RTX, graph(HALF, output_too=True)),
    ],
)  # fmt: skip
def test_else_it_stays_as_it_is(backend: Backend, model: onnx.ModelProto) -> None:
    before = ir.from_proto(model)
    assert interface_for(backend, before) is before


@pytest.fixture(scope="module")
def for_a_gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, which builds without a GPU, is not installed")
    folder = tmp_path_factory.mktemp("bundles") / "rtx"
    request = BuildRequest(
        "tests.models:tiny", folder, Tiling(64, 96, 48, 64), precision="fp16", backend="tensorrt_rtx"
    )
    build_bundle(request, lambda step, text: None)
    return folder


def test_the_reference_runs_a_graph_that_takes_halves(tmp_path: Path) -> None:
    before = ir.from_proto(graph(HALF))
    ir.save(interface_for(RTX, before), tmp_path / MODEL)
    reference = get_backend("onnxruntime")
    image = np.random.default_rng(0).normal(0, 3, (1, 3, 4, 6)).astype(np.float32)
    config = BuildConfig(model=tmp_path / MODEL)
    with reference.load(reference.build(tmp_path / MODEL, config), config) as session:
        assert np.array_equal(session.run(image), answer(before, image))


def test_a_bundle_for_a_gpu_runs_on_a_cpu_as_well(for_a_gpu: Path, tmp_path: Path) -> None:
    """Compiled again from its own graph, and held against the checkpoint's logits by its gate."""
    assert ir.load(for_a_gpu / MODEL).graph.inputs[0].dtype == ir.DataType.FLOAT16
    said: list[str] = []
    rebuild(for_a_gpu, tmp_path / "cpu", log=lambda *words: said.append(": ".join(words)), backend_name="openvino")
    assert any(line.startswith("tiled mask") for line in said)
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    with open_segmenter(tmp_path / "cpu") as (segmenter, _):
        assert segmenter.segment(image).labels.shape == (100, 150)
