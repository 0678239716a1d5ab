"""The adapter on five releases of TensorRT, as their own bindings describe themselves (tests/engines/tensorrt_api)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.trt.features import strongly_typed
from tests.engines.conftest import Start
from tests.engines.tensorrt_api.fakes import VERSIONS, called
from tests.engines.tensorrt_api.machine import AMPERE, FREE, ORIN, Machine, write_graph

OLD = "8.6.1"
TYPED = tuple(version for version in VERSIONS if version != OLD)
WINDOW = np.linspace(-1, 1, 3 * 8 * 12, dtype=np.float32).reshape(1, 3, 8, 12)


def _config(**options: object) -> BuildConfig:
    return BuildConfig(tensorrt=TensorRTOptions(**options))  # type: ignore[arg-type]


def _last(machine: Machine, name: str) -> Any:
    """The last argument of the one call, or the value of the one assignment."""
    (arguments,) = (arguments for what, arguments in machine.sdk.log if what == name)
    return arguments[-1]


def test_five_releases_are_recorded() -> None:
    assert VERSIONS == ("8.6.1", "10.3.0", "10.13.3", "10.16.1.11", "11.4.0.106")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_makes_these_calls_and_no_others(start: Start, model: Path, version: str) -> None:
    machine = start(version)
    machine.backend.build(model, BuildConfig())
    expected = {
        "Builder", "Builder.create_network", "Builder.create_builder_config", "Builder.build_serialized_network",
        "OnnxParser", "OnnxParser.parse", "INetworkDefinition.get_input", "INetworkDefinition.get_output",
        "IBuilderConfig.clear_flag", "IBuilderConfig.set_memory_pool_limit", "IBuilderConfig.profiling_verbosity",
    }  # fmt: skip
    if version == OLD:
        expected |= {"INetworkDefinition.get_layer", "ILayer.get_output"}
    else:
        expected.add("IBuilderConfig.progress_monitor")
    assert called(machine.sdk) == expected
    assert ("IBuilderConfig.clear_flag", (machine.sdk.BuilderFlag.TF32,)) in machine.sdk.log
    assert _last(machine, "IBuilderConfig.set_memory_pool_limit") == FREE // 2
    assert _last(machine, "IBuilderConfig.profiling_verbosity") is machine.sdk.ProfilingVerbosity.DETAILED
    assert machine.sdk.world["network"] == (["EXPLICIT_BATCH"] if version == OLD else ["STRONGLY_TYPED"])
    assert machine.sdk.world["flags"] == set()


@pytest.mark.parametrize("version", TYPED)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_strongly_typed_network_takes_no_precision_flag(
    start: Start, tmp_path: Path, version: str, precision: str
) -> None:
    machine = start(version)
    assert machine.backend.supports(precision) is None
    machine.backend.build(write_graph(tmp_path / "m.onnx", precision), BuildConfig(precision))
    assert machine.sdk.world["flags"] == set()
    assert "held" not in machine.sdk.world


def test_the_types_of_the_graph_hold_on_8_6_too(start: Start, tmp_path: Path) -> None:
    machine, said = start(OLD), list[str]()
    config = BuildConfig("fp16", log=lambda step, text: said.append(f"{step}: {text}"))
    machine.backend.build(write_graph(tmp_path / "m.onnx", "fp16"), config)
    assert machine.sdk.world["flags"] == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    assert machine.sdk.world["held"] == {"norm": "FLOAT", "classifier": "FLOAT"}
    assert machine.sdk.world["outputs"] == {("norm", 0): "FLOAT", ("classifier", 0): "FLOAT"}
    assert any("2 FP32 layers" in line for line in said)


def test_int8_on_8_6_leaves_what_is_beside_a_quantiser_to_tensorrt(start: Start, tmp_path: Path) -> None:
    machine = start(OLD)
    machine.backend.build(write_graph(tmp_path / "m.onnx", "int8"), BuildConfig("int8"))
    assert machine.sdk.world["flags"] == {"INT8", "OBEY_PRECISION_CONSTRAINTS"}
    assert "product" not in machine.sdk.world["held"]
    assert {"norm", "classifier"} <= set(machine.sdk.world["held"])


def test_bf16_needs_a_tensorrt_that_has_it(start: Start) -> None:
    assert "has no BF16; use --precision fp16" in str(start(OLD).backend.supports("bf16"))
    turing = replace(AMPERE, name="Tesla T4", sm=(7, 5))
    assert "8.0" in str(start("10.3.0", turing).backend.supports("bf16"))
    assert start("11.4.0.106").backend.supports("bf16") is None


def test_a_removed_flag_is_found_here(start: Start, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes are worth something: an adapter that still sets FP16 on TensorRT 11 fails."""
    machine = start("11.4.0.106")
    with pytest.raises(AttributeError):
        _ = machine.sdk.BuilderFlag.FP16
    with pytest.raises(AttributeError):
        _ = machine.sdk.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    assert strongly_typed(machine.sdk)
    monkeypatch.setattr("engines.trt.builder.strongly_typed", lambda sdk: False)
    monkeypatch.setattr("engines.trt.network.held_types", lambda layers: {"HALF": 1, "QUANTIZE": 0, "DEQUANTIZE": 0})
    with pytest.raises((DeployError, AttributeError), match=r"FP16|precision"):
        machine.backend.build(model, BuildConfig("fp16"))


@pytest.mark.parametrize("version", VERSIONS)
def test_options_reach_the_builder(start: Start, model: Path, version: str) -> None:
    machine = start(version, AMPERE)
    config = _config(workspace=1 << 28, level=2, aux_streams=0, version_compatible=True, hardware="ampere_plus")
    machine.backend.build(model, config)
    assert _last(machine, "IBuilderConfig.set_memory_pool_limit") == 1 << 28
    assert _last(machine, "IBuilderConfig.builder_optimization_level") == 2
    assert _last(machine, "IBuilderConfig.max_aux_streams") == 0
    assert _last(machine, "IBuilderConfig.hardware_compatibility_level").name == "AMPERE_PLUS"
    assert machine.sdk.world["flags"] == {"VERSION_COMPATIBLE"}


@pytest.mark.parametrize(
    ("version", "options", "flag"),
    [
        (OLD, {"strip_weights": True}, "--strip-weights"),
        (OLD, {"hardware": "same_cc"}, "--hardware same_cc"),
        ("10.3.0", {"hardware": "same_cc"}, "--hardware same_cc"),
    ],
)
def test_what_a_release_lacks_is_refused_before_any_work(
    start: Start, model: Path, version: str, options: dict[str, object], flag: str
) -> None:
    machine = start(version)
    with pytest.raises(DeployError, match=f"{flag}: TensorRT {version}"):
        machine.backend.build(model, _config(**options))
    assert not called(machine.sdk)


def test_the_workspace_leaves_room_for_others(start: Start, model: Path) -> None:
    said = list[str]()
    config = BuildConfig(log=lambda step, text: said.append(f"{step}: {text}"))
    start("10.3.0", ORIN).backend.build(model, config)
    assert "workspace: 2048 MiB, half of 4096 MiB free: the CPU lives in the same memory" in said
    machine = start("10.3.0", AMPERE)
    machine.backend.build(model, config)
    assert FREE // 2 <= _last(machine, "IBuilderConfig.set_memory_pool_limit") < FREE


def test_a_graph_with_a_number_of_windows_written_into_it_is_refused(start: Start, tmp_path: Path) -> None:
    machine = start("10.3.0")
    with pytest.raises(DeployError, match="batch: "):
        machine.backend.build(write_graph(tmp_path / "m.onnx", fixed=True), BuildConfig(batch=2))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_failed_parse_names_the_node(start: Start, tmp_path: Path, version: str) -> None:
    desc = "No importer registered for op: Mystery"
    error = {"desc": desc, "node": 7, "name": "/head/mystery", "operator": "Mystery"}
    with pytest.raises(DeployError) as caught:
        start(version).backend.build(write_graph(tmp_path / "m.onnx", error=error), BuildConfig())
    text = str(caught.value)
    assert ("node number 7" if version == OLD else "Mystery node /head/mystery") in text
    assert desc in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "[optimizer.cpp::computeCosts::2011] Error Code 10: Internal Error (Could not find any implementation for "
            "node {ForeignNode[onnx::Gather_72...ScatterND_170]}.)",
            r"node ForeignNode\[onnx::Gather_72...ScatterND_170\] .*too little memory.*--workspace",
        ),
        (
            "Error Code 10: Internal Error (Could not find any implementation for node ArgMax_260.)",
            "node ArgMax_260 .*too little memory",
        ),
        ("Error Code 2: OutOfMemory (no further information)", "out of memory while building"),
        (
            "IBuilder::buildSerializedNetwork: Error Code 9: API Usage Error (Target GPU SM 87 is not supported by "
            "this TensorRT release.)",
            "has no kernels for this GPU .*SM 87.*JetPack",
        ),
        ("Error Code 1: Internal Error (Unsupported SM: 0x601)", "has no kernels for this GPU"),
        ("Error Code 4: something new", "cannot build: Error Code 4: something new"),
    ],
)
def test_a_failed_build_is_explained(start: Start, model: Path, said: str, words: str) -> None:
    machine = start("10.3.0")
    machine.sdk.world["build_error"] = said
    with pytest.raises(DeployError, match=words) as caught:
        machine.backend.build(model, BuildConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_ctrl_c_ends_a_build(start: Start, model: Path, version: str) -> None:
    import _thread
    import time

    machine, interrupted = start(version), list[bool]()

    def interrupt_once() -> None:
        if not interrupted:
            interrupted.append(True)
            _thread.interrupt_main()
            time.sleep(0.5)

    machine.sdk.world["during"] = interrupt_once
    with pytest.raises(KeyboardInterrupt):
        machine.backend.build(model, BuildConfig())


def test_the_timing_cache_is_kept_checked_and_replaced(start: Start, model: Path) -> None:
    path, said = model.parent / "b.timing-cache", list[str]()
    config = BuildConfig(timing_cache=path, log=lambda step, text: said.append(text) if "cache" in step else None)

    def given(machine: Machine) -> bytes:
        machine.backend.build(model, config)
        return bytes(_last(machine, "IBuilderConfig.create_timing_cache"))

    assert given(start("10.3.0")) == b""
    assert given(start("10.3.0")) == b"measured;"
    assert given(start("10.3.0", AMPERE)) == b""
    assert "another" in said[-2] or "of tensorrt 10.3.0 on sm_87 Orin; a new one replaces it" in said[-2]
    assert given(start("10.3.0", AMPERE)) == b"measured;"
    for damage in (lambda blob: blob[:-1], lambda blob: b"something else", lambda blob: b"", lambda blob: blob + b"x"):
        path.write_bytes(damage(path.read_bytes()))
        assert given(start("10.3.0", AMPERE)) == b""
        assert "a new one replaces it" in said[-2]
    assert sorted(file.name for file in model.parent.iterdir()) == ["b.timing-cache", "model.onnx"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dla_is_answered_and_nothing_is_built(start: Start, model: Path, version: str) -> None:
    machine = start(version)
    with pytest.raises(DeployError, match="sees no DLA"):
        machine.backend.build(model, _config(dla=0))
    machine.sdk.world["cores"] = 2
    with pytest.raises(DeployError, match=r"--dla 1: 2 of 8 layers could run on the DLA \(2 of 2 CONVOLUTION, .*CAST"):
        machine.backend.build(model, _config(dla=1))
    with pytest.raises(DeployError, match="expected 0 to 1"):
        machine.backend.build(model, _config(dla=2))
    assert "Builder.build_serialized_network" not in called(machine.sdk)
