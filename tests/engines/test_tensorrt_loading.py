"""Engines are loaded on what they were built for, and refused elsewhere before TensorRT sees a byte of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.base import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.trt.blob import MAGIC, unpack
from tests.engines.conftest import Start
from tests.engines.tensorrt_api.fakes import RTX, VERSIONS, called
from tests.engines.tensorrt_api.machine import AMPERE, ORIN, Machine, write_graph

OLD = "8.6.1"
TYPED = tuple(version for version in VERSIONS if version != OLD)
WINDOW = np.linspace(-1, 1, 3 * 8 * 12, dtype=np.float32).reshape(1, 3, 8, 12)


def _config(**options: object) -> BuildConfig:
    return BuildConfig(tensorrt=TensorRTOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", VERSIONS)
def test_loads_runs_and_frees(start: Start, tmp_path: Path, version: str) -> None:
    machine = start(version)
    blob = machine.backend.build(write_graph(tmp_path / "m.onnx"), BuildConfig(batch=2))
    machine.sdk.log.clear()
    windows = np.concatenate([WINDOW, -3 * WINDOW])
    with machine.backend.load(blob, BuildConfig(batch=2)) as session:
        assert (session.input.name, session.input.shape, session.input.dtype) == ("image", (2, 3, 8, 12), "fp32")
        assert (session.output.name, session.output.shape, session.output.dtype) == ("logits", (2, 2, 4, 6), "fp32")
        assert session.capturable
        logits = session.run(windows)
        np.testing.assert_array_equal(logits[:, 0], windows[:, 0, ::2, ::2])
        np.testing.assert_array_equal(logits[:, 1], 2 * windows[:, 0, ::2, ::2])
        assert machine.gpu.held > 0
        with pytest.raises(DeployError, match="engine input: got"):
            session.run(WINDOW)
    assert machine.gpu.held == 0
    assert ("IExecutionContext.execute_async_v3", (machine.gpu.stream,)) in machine.sdk.log
    assert called(machine.sdk) == {
        "Runtime", "Runtime.deserialize_cuda_engine", "ICudaEngine.get_tensor_name", "ICudaEngine.get_tensor_dtype",
        "ICudaEngine.get_tensor_shape", "ICudaEngine.get_tensor_mode", "ICudaEngine.create_execution_context",
        "IExecutionContext.set_tensor_address", "IExecutionContext.execute_async_v3",
    }  # fmt: skip


@pytest.mark.parametrize("version", TYPED)
def test_weights_come_from_the_bundle(start: Start, model: Path, version: str) -> None:
    machine, config = start(version), _config(strip_weights=True)
    blob = machine.backend.build(model, config)
    assert machine.sdk.world["flags"] == {"STRIP_PLAN", "REFIT_IDENTICAL"}
    with machine.backend.load(blob, replace(config, model=model)) as session:
        assert session.run(WINDOW).shape == (1, 2, 4, 6)
    for given, words in (
        (config, "no weights of its own, and no graph"),
        (replace(config, model=write_graph(model.parent / "other.onnx", "fp16")), "another other.onnx"),
        (replace(config, model=model.parent / "missing.onnx"), "missing.onnx"),
    ):
        with pytest.raises(DeployError, match=words), machine.backend.load(blob, given):
            pass


def _refused(machine: Machine, blob: bytes, words: str) -> None:
    machine.sdk.log.clear()
    with pytest.raises(DeployError, match=words), machine.backend.load(blob, BuildConfig()):
        pass
    assert not called(machine.sdk), "the SDK was touched"


def test_other_machines_are_refused_before_deserialising(start: Start, model: Path) -> None:
    blob = start("10.3.0").backend.build(model, BuildConfig())
    _refused(start("10.13.3"), blob, "built with 'tensorrt 10.3.0', but this is 'tensorrt 10.13.3'")
    _refused(start("10.3.0", AMPERE), blob, "sm_87 .*but this is .*sm_86")
    _refused(start("10.3.0", replace(ORIN, name="Orin NX")), blob, "Orin NX")
    _refused(start("10.3.0", replace(ORIN, driver=12020)), blob, "driver for CUDA 12.6, but .* 12.2")
    with start("10.3.0", replace(ORIN, driver=13000)).backend.load(blob, BuildConfig()) as session:
        session.run(WINDOW)


def test_a_changed_byte_is_refused_before_deserialising(start: Start, model: Path) -> None:
    machine = start("10.3.0")
    blob = machine.backend.build(model, BuildConfig())
    start_of_plan = len(blob) - unpack(blob)[0].plan_bytes
    for place in range(0, len(blob), 7):
        changed = bytearray(blob)
        changed[place] ^= 4
        if place >= start_of_plan:
            _refused(machine, bytes(changed), "its plan has changed")
        else:
            _refused(machine, bytes(changed), "engine: ")
    for length in (0, 5, len(MAGIC) + 3, len(MAGIC) + 20, start_of_plan - 1, start_of_plan, len(blob) - 1):
        _refused(machine, blob[:length], "engine: ")
    _refused(machine, blob + b"x", "engine: ")


@pytest.mark.parametrize(
    ("built", "here", "loads"),
    [
        ("8.6.1", "10.3.0", True), ("10.3.0", "10.16.1.11", True), ("10.13.3", "11.4.0.106", True),
        ("8.6.1", "11.4.0.106", False), ("11.4.0.106", "10.16.1.11", False), ("10.3.0", "8.6.1", False),
        ("10.13.3", "10.3.0", False),
    ],
)  # fmt: skip
def test_version_compatible_engines_go_upward(start: Start, model: Path, built: str, here: str, loads: bool) -> None:
    config = _config(version_compatible=True)
    blob = start(built).backend.build(model, config)
    machine = start(here)
    reason = machine.backend.refuses(f"tensorrt {built}", str(ORIN), config)
    if loads:
        assert reason is None
        with machine.backend.load(blob, config) as session:
            session.run(WINDOW)
        assert ("Runtime.engine_host_code_allowed", (True,)) in machine.sdk.log
    else:
        assert f"built with 'tensorrt {built}'" in str(reason)
        _refused(machine, blob, f"built with 'tensorrt {built}'")


def test_hardware_compatible_engines_run_on_other_gpus(start: Start, model: Path) -> None:
    other, ada = replace(AMPERE, name="NVIDIA RTX 3090"), replace(AMPERE, name="NVIDIA L4", sm=(8, 9))
    turing = replace(AMPERE, name="Tesla T4", sm=(7, 5))
    for hardware, fits, not_fits in (("same_cc", [other], [ada, turing]), ("ampere_plus", [other, ada], [turing])):
        blob = start("10.13.3", AMPERE).backend.build(model, _config(hardware=hardware))
        for info in fits:
            with start("10.13.3", info).backend.load(blob, BuildConfig()) as session:
                session.run(WINDOW)
        for info in not_fits:
            _refused(start("10.13.3", info), blob, "but this is")


def test_what_the_runtime_refuses_is_explained(start: Start, model: Path) -> None:
    machine = start("11.4.0.106")
    blob = machine.backend.build(model, BuildConfig())
    with machine.backend.load(blob, BuildConfig()) as session:
        machine.sdk.world["run_error"] = "Error Code 3: API Usage Error (something)"
        with pytest.raises(DeployError, match="cannot run the engine: Error Code 3"):
            session.run(WINDOW)
    machine.sdk.world["load_error"] = "Error Code 2: OutOfMemory (Requested size was 9 bytes.)"
    with pytest.raises(DeployError, match="no GPU memory left"), machine.backend.load(blob, BuildConfig()):
        pass
    assert machine.gpu.held == 0


def test_layers_are_the_inspectors_with_the_profilers_times(start: Start, model: Path) -> None:
    machine = start("10.3.0")
    blob = machine.backend.build(model, BuildConfig(batch=2))
    tensor = {"Format/Datatype": "Half"}
    machine.sdk.world["described"] = [
        {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Int8"}], "Outputs": [tensor]},
        {"Name": "norm", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Float"}], "Outputs": [tensor]},
        {"Name": "product", "LayerType": "gemm", "Inputs": [tensor], "Outputs": [{"Format/Datatype": "Float"}]},
        {"Name": "never timed", "LayerType": "NoOp", "Inputs": [tensor], "Outputs": [tensor]},
    ]
    layers = {layer.name: layer for layer in machine.backend.layers(blob, BuildConfig(), WINDOW, 3)}
    assert {name: layers[name].precision for name in ("conv", "norm", "product")} == {
        "conv": "int8", "norm": "fp32", "product": "fp16",
    }  # fmt: skip
    assert "never timed" not in layers
    assert layers["classifier"].precision == "?"  # timed, and not described
    assert sum(layer.share for layer in layers.values()) == pytest.approx(1)
    machine.sdk.world["described"] = ["conv", "norm"]
    with pytest.raises(DeployError, match="without an account of its layers"):
        machine.backend.layers(blob, BuildConfig(), WINDOW)


def test_the_header_says_what_was_built(start: Start, model: Path) -> None:
    options = TensorRTOptions(level=1, hardware="ampere_plus")
    blob = start("10.16.1.11", AMPERE).backend.build(model, BuildConfig(tensorrt=options))
    header, plan = unpack(blob)
    assert (header.sdk, header.device, header.options) == ("tensorrt 10.16.1.11", str(AMPERE), options)
    assert json.loads(bytes(plan))["io"][0][0] == "image"


def test_tensorrt_rtx_makes_these_calls_and_no_others(start: Start, model: Path) -> None:
    machine = start(RTX, AMPERE)
    blob = machine.backend.build(model, BuildConfig(timing_cache=model.parent / "unused"))
    assert machine.sdk.world["targets"] == ["SM86"]
    assert machine.sdk.world["flags"] == {"REQUIRE_USER_ALLOCATION"}
    assert called(machine.sdk) == {
        "Builder", "Builder.create_network", "Builder.create_builder_config", "Builder.build_serialized_network",
        "OnnxParser", "OnnxParser.parse", "INetworkDefinition.get_input", "INetworkDefinition.get_output",
        "IBuilderConfig.clear_flag", "IBuilderConfig.set_flag", "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.profiling_verbosity", "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability", "IBuilderConfig.progress_monitor",
    }  # fmt: skip
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]
    for capturable in (True, False):
        machine.sdk.world["capturable"] = capturable
        with machine.backend.load(blob, BuildConfig()) as session:
            assert session.capturable == capturable
            session.run(WINDOW)
    with start(RTX, replace(AMPERE, name="NVIDIA RTX 3090")).backend.load(blob, BuildConfig()) as session:
        session.run(WINDOW)
    _refused(start(RTX, replace(AMPERE, sm=(8, 9))), blob, "compiled for SM86, but this is .*sm_89")
    _refused(start("10.3.0", AMPERE), blob, "built with 'tensorrt_rtx 1.7.1.116'")
