"""TensorRT-RTX on this CPU, for real: it parses and builds what the pipeline lowers.  Running it takes a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import deploy
from engines.backends import choose_backend
from engines.backends.tensorrt import build as builder_module
from engines.backends.tensorrt import engine_file
from engines.backends.tensorrt.messages import load_error, logger_of
from engines.backends.tensorrt.network import ParsedNetwork, held_types, outputs
from engines.backends.tensorrt.progress import Progress
from engines.backends.tensorrt.sdk import name_of
from engines.contract import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.gpu.info import GpuInfo
from pipeline.graph.batches import neutral
from pipeline.graph.proto import save
from tests.engines.backends.tensorrt.graphs import NETWORKS, Made, made
from tests.pipeline.precision.lowering import graph_of, types

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: it is for Linux on x86-64")

from engines.backends.tensorrt.tensorrt_rtx import backend  # noqa: E402

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TYPES = {
    "FLOAT": TensorProto.FLOAT,
    "HALF": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "INT8": TensorProto.INT8,
}
CASES = [
    pytest.param(network, precision, marks=pytest.mark.slow if network == "demo" else ())
    for network in NETWORKS
    for precision in PRECISIONS
]


@pytest.fixture(scope="module")
def builder() -> Any:
    return trt.Builder(logger_of(trt))


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_every_tensor_has_the_type_that_the_graph_says(builder: Any, network: str, precision: str) -> None:
    """By TensorRT's own account of the parsed network: islands are FP32, and what is INT8 lies between Q and DQ."""
    graph = made(network, precision)
    parsed = ParsedNetwork(trt, "TensorRT-RTX", builder, logger_of(trt), graph.path, typed=True)
    found = {tensor.name: name_of(tensor.dtype) for layer in parsed.layers for tensor in outputs(layer)}
    said = types(graph.graph)
    compared = [name for name, kind in found.items() if kind in TYPES and name in said]
    assert len(compared) > 0.5 * len(graph.graph.model.graph)
    assert [name for name in compared if TYPES[found[name]] != said[name]] == []
    if graph.plan is not None:
        islands = [node.output for node in graph.plan.islands if node.output in found and node.precision == "fp32"]
        assert {node.op for node in graph.plan.islands} >= {"LayerNormalization", "Softmax"}
        assert islands
        assert {found[name] for name in islands} == {"FLOAT"}
    held = held_types(parsed.layers)
    ops = [node.op_type for node in graph.graph.model.graph]
    assert held["QUANTIZE"] == ops.count("QuantizeLinear")
    assert held["DEQUANTIZE"] == ops.count("DequantizeLinear")
    assert (held["QUANTIZE"] > 0) == (precision == "int8")


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_builds_an_engine_for_every_gpu_from_ampere_on(network: str, precision: str) -> None:
    """Without a GPU at hand; with a header that says what it is, and TensorRT's own plan behind it."""
    graph = made(network, precision)
    header, plan = engine_file.unpack(backend.build(graph.path, BuildConfig(precision)))
    assert header.sdk == f"tensorrt_rtx {trt.__version__}"
    assert header.targets == ("SM80", "SM86", "SM89", "SM120", "SM121")
    assert len(plan) == header.plan_bytes > 100_000


def test_inputs_and_outputs_keep_their_names_and_shapes(builder: Any) -> None:
    parsed = ParsedNetwork(trt, "TensorRT-RTX", builder, logger_of(trt), made("segformer", "fp16").path, typed=True)
    source, target = parsed.network.get_input(0), parsed.network.get_output(0)
    assert (source.name, tuple(source.shape), name_of(source.dtype)) == ("image", (1, 3, 64, 64), "FLOAT")
    assert (target.name, tuple(target.shape), name_of(target.dtype)) == ("logits", (1, 5, 16, 16), "FLOAT")


def test_strongly_typed_without_any_flag_too(builder: Any) -> None:
    """`create_network(0)` is what TensorRT 11 documents; the flag must make no other network here."""
    assert builder.create_network(0).get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _convolution(batch: int, op: str = "Relu", **attributes: Any) -> Made:
    weight = np.full((4, 3, 1, 1), 0.25, np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["x"], name="embed/conv"),
        helper.make_node(op, ["x"], ["logits"], name="head/odd", **attributes),
    ]
    graph = graph_of(nodes, {"w": weight}, (batch, 3, 8, 8), (batch, 4, 8, 8))
    return Made(Path(), graph, None)


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    save(_convolution(1, "Bernoulli").graph.model, tmp_path / "model.onnx")
    wanted = r"TensorRT-RTX .* cannot take model\.onnx: Bernoulli node head/odd: .+; replace this operator"
    with pytest.raises(DeployError, match=wanted) as caught:
        backend.build(tmp_path / "model.onnx", BuildConfig())
    assert "\n" not in str(caught.value)


def test_a_damaged_model_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model at all")
    with pytest.raises(DeployError, match=r"cannot (take|read) model\.onnx") as caught:
        backend.build(tmp_path / "model.onnx", BuildConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network", ["segformer", "mla"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_two_windows_at_once(network: str, precision: str, tmp_path: Path) -> None:
    """The real graphs, without the batch that exporters write into them."""
    graph = neutral(made(network, precision).graph)
    save(graph.model, tmp_path / "model.onnx")
    config = BuildConfig(precision, batch=2)
    parsed = ParsedNetwork(
        trt, "TensorRT-RTX", trt.Builder(logger_of(trt)), logger_of(trt), tmp_path / "model.onnx", True, 2
    )
    shapes = [tuple(tensor.shape) for tensor in (parsed.network.get_input(0), parsed.network.get_output(0))]
    assert shapes == [(2, *graph.input_shape[1:]), (2, *graph.output_shape[1:])]
    header, _ = engine_file.unpack(backend.build(tmp_path / "model.onnx", config))
    assert header.plan_bytes > 100_000


def test_a_number_of_windows_written_into_the_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"batch: .*build from the model with --batch"):
        backend.build(made("segformer", "fp32").path, BuildConfig(batch=2))


def test_progress_goes_from_nothing_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    phases: set[str] = set()

    class Watched(Progress):
        def _show(self) -> None:
            super()._show()
            shares.append(self.share)
            phases.add(self.phase)

    monkeypatch.setattr(builder_module, "Progress", Watched)
    backend.build(made("segformer", "fp32").path, BuildConfig())
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == 1.0
    assert len(set(shares)) > 20
    assert {"Building engine", "Optimizing graph"} <= phases


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_build() -> None:
    """A real SIGINT while TensorRT is at work: it gives up, says so, and only then KeyboardInterrupt comes."""
    command = [
        sys.executable,
        "-m",
        "tests.engines.backends.tensorrt.interrupted_build",
        str(made("segformer", "fp32").path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[4], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("KeyboardInterrupt after")
    assert "cancel" in done.stdout.lower()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TensorRTOptions(version_compatible=True), r"--version-compatible: TensorRT-RTX engines run in the release"),
        (TensorRTOptions(strip_weights=True), r"--strip-weights: .* on a GPU alone"),
    ],
)
def test_what_it_cannot_do_is_refused(options: TensorRTOptions, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        backend.build(made("segformer", "fp32").path, BuildConfig(tensorrt=options))


def test_engines_can_be_recorded_and_say_what_their_layers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUIRE_USER_ALLOCATION is what the notes of release 1.2 ask for; TF32, on by default, would not be FP32."""
    seen: list[Any] = []

    def run(sdk: Any, build: Any, settings: Any, log: Any) -> Any:
        seen.append(settings)
        return real(sdk, build, settings, log)

    real = builder_module._run
    monkeypatch.setattr(builder_module, "_run", run)
    options = TensorRTOptions(workspace=64 * 2**20, level=1, aux_streams=0)
    backend.build(made("naive", "fp32").path, BuildConfig(tensorrt=options))
    (settings,) = seen
    assert settings.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    assert not settings.get_flag(trt.BuilderFlag.TF32)
    assert settings.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert (settings.builder_optimization_level, settings.max_aux_streams) == (1, 0)
    assert settings.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 * 2**20
    assert settings.num_compute_capabilities == 5


def test_a_plan_that_the_runtime_refuses_is_told_in_one_line() -> None:
    """Without a GPU it refuses every plan; with one it takes this."""
    if backend.unavailable() is None:
        pytest.skip("there is a GPU here")
    _, plan = engine_file.unpack(backend.build(made("naive", "fp32").path, BuildConfig()))
    logger = logger_of(trt)
    logger.messages.clear()
    assert trt.Runtime(logger).deserialize_cuda_engine(plan) is None
    error = str(load_error("TensorRT-RTX", "loading the engine", logger))
    assert "\n" not in error
    assert "CUDA" in error


def test_without_a_gpu_it_says_so_and_auto_passes_it_by() -> None:
    reason = backend.unavailable()
    if reason is None:
        pytest.skip("there is a GPU here")
    assert reason.startswith("no GPU to run or verify on")
    assert choose_backend("auto", "fp32")[0].name == "openvino"
    with pytest.raises(DeployError, match="no GPU to run or verify on"):
        choose_backend("tensorrt_rtx", "fp32")
    chosen, why = choose_backend("tensorrt_rtx", "fp32", runs=False)
    assert (chosen.name, chosen.device()) == ("tensorrt_rtx", "no GPU")
    assert "to be verified where it runs: no GPU here" in why


def test_a_bundle_is_built_unverified_and_does_not_run_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real builder.  What proves such a bundle is in tests/engines/gpu/fake_cuda/check_bundle.py."""
    if backend.unavailable() is None:
        pytest.skip("there is a GPU here")
    build = ["build-engine", "tests.models:tiny", "-o", str(tmp_path / "b"), "--tile", "64x96"]
    assert deploy.main([*build, "--backend", "tensorrt_rtx"]) == 0
    assert "UNVERIFIED: no GPU here; its first run on a GPU verifies it, or refuses" in capsys.readouterr().out
    assert deploy.main(["inspect", str(tmp_path / "b")]) == 0
    assert "no device yet: the first run verifies it, or refuses" in capsys.readouterr().out
    assert deploy.main(["run", str(tmp_path / "b"), "demo", "-o", str(tmp_path / "masks")]) == 2
    assert "no GPU to run or verify on" in capsys.readouterr().err
    monkeypatch.setattr("engines.gpu.context.unavailable", lambda: None)
    monkeypatch.setattr("engines.gpu.context.gpu_info", lambda: GpuInfo("RTX A", (8, 6), 13000, 24 << 30, False))
    assert backend.refuses(backend.version(), "no GPU", BuildConfig()) is None
    assert backend.refuses("tensorrt_rtx 1.0", "no GPU", BuildConfig()) is not None


def test_an_engine_of_this_machine_is_not_loaded_without_a_gpu() -> None:
    if backend.unavailable() is None:
        pytest.skip("there is a GPU here")
    engine = backend.build(made("naive", "fp32").path, BuildConfig())
    with (
        pytest.raises(DeployError, match=r"compiled for SM80, .*but this is 'no GPU'"),
        backend.load(engine, BuildConfig()),
    ):
        pass


@pytest.mark.parametrize(("sm", "there"), [((8, 6), True), ((7, 5), True), ((8, 7), False), ((9, 0), False)])
def test_devices_that_it_has_no_kernels_for(sm: tuple[int, int], there: bool) -> None:
    reason = backend.flavour.without(trt, sm)
    assert (reason is None) == there
    if reason:
        assert f"no kernels for compute capability {sm[0]}.{sm[1]}" in reason
        assert "use --backend tensorrt" in reason
    else:
        assert backend.flavour.targets(trt, sm, TensorRTOptions()) == (f"SM{sm[0]}{sm[1]}",)
        everywhere = replace(TensorRTOptions(), hardware="ampere_plus")
        assert len(backend.flavour.targets(trt, sm, everywhere)) == 5
