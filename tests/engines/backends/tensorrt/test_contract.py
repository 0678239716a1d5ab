"""The adapter on five releases of TensorRT, as their own bindings describe themselves (see `api`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.backends.tensorrt.build import MIB, Room, workspace_limit
from engines.backends.tensorrt.sdk import strongly_typed
from engines.contract import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from tests.engines.backends.tensorrt.api.fakes import VERSIONS, called
from tests.engines.backends.tensorrt.api.machine import AMPERE, FREE, OLD, ORIN, TYPED, Machine, tuned, write_graph
from tests.engines.conftest import Start


def _last(machine: Machine, name: str) -> Any:
    """The last argument of the one call, or the value of the one assignment."""
    (arguments,) = (arguments for what, arguments in machine.sdk.log if what == name)
    return arguments[-1]


def test_five_releases_are_recorded() -> None:
    assert VERSIONS == ("8.6.1", "10.3.0", "10.13.3", "10.16.1.11", "11.4.0.106")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_makes_these_calls_and_no_others(start: Start, model: Path, version: str) -> None:
    machine, said = start(version), list[str]()
    machine.backend.build(model, BuildConfig(log=lambda step, text: said.append(step)))
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
    assert ("build" in said) == (version == OLD)  # which cannot be interrupted, and is not so without a word
    assert _last(machine, "IBuilderConfig.clear_flag") is machine.sdk.BuilderFlag.TF32
    assert _last(machine, "IBuilderConfig.set_memory_pool_limit") == FREE // 2
    assert _last(machine, "IBuilderConfig.profiling_verbosity") is machine.sdk.ProfilingVerbosity.DETAILED
    assert machine.sdk.world["network"] == (["EXPLICIT_BATCH"] if version == OLD else ["STRONGLY_TYPED"])
    assert machine.sdk.world["flags"] == set()


@pytest.mark.parametrize(
    ("version", "flags"), [(OLD, 1), ("10.3.0", 2), ("10.13.3", 2), ("10.16.1.11", 2), ("11.4.0.106", 1)]
)
def test_networks_are_strongly_typed_where_they_can_be(start: Start, model: Path, version: str, flags: int) -> None:
    """EXPLICIT_BATCH of 8.6 is bit 0, STRONGLY_TYPED of 10 is bit 1; bit 1 of 11 would be something else altogether."""
    machine = start(version)
    machine.backend.build(model, BuildConfig())
    assert _last(machine, "Builder.create_network") == flags


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
    """FP32 islands do, and nothing else: no constant, no cast from FP16, no FP16 layer."""
    machine, said = start(OLD), list[str]()
    config = BuildConfig("fp16", log=lambda step, text: said.append(f"{step}: {text}"))
    machine.backend.build(write_graph(tmp_path / "m.onnx", "fp16"), config)
    assert machine.sdk.world["flags"] == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    assert machine.sdk.world["held"] == {"norm": "FLOAT", "classifier": "FLOAT"}
    assert machine.sdk.world["outputs"] == {("norm", 0): "FLOAT", ("classifier", 0): "FLOAT"}
    assert "types: 2 FP32 layers, FP16, OBEY_PRECISION_CONSTRAINTS" in said


def test_int8_on_8_6_leaves_what_is_beside_a_quantiser_to_tensorrt(start: Start, tmp_path: Path) -> None:
    machine = start(OLD)
    machine.backend.build(write_graph(tmp_path / "m.onnx", "int8"), BuildConfig("int8"))
    assert machine.sdk.world["flags"] == {"INT8", "OBEY_PRECISION_CONSTRAINTS"}
    held = {"cast in", "conv", "up", "norm", "down", "up again", "classifier"}  # neither "q" nor "dq" nor "product"
    assert set(machine.sdk.world["held"]) == held
    assert {name for name, _ in machine.sdk.world["outputs"]} == held


def test_bf16_needs_a_tensorrt_that_has_it(start: Start) -> None:
    turing = replace(AMPERE, name="Tesla T4", sm=(7, 5))
    for version in VERSIONS:
        backend = start(version).backend
        assert all(backend.supports(precision) is None for precision in ("fp32", "fp16", "int8"))
        if version == OLD:
            assert "has no BF16; use --precision fp16" in str(backend.supports("bf16"))
        else:
            assert backend.supports("bf16") is None
            assert "8.0" in str(start(version, turing).backend.supports("bf16"))


def test_a_removed_flag_is_found_here(start: Start, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes are worth something: an adapter that still sets FP16 on TensorRT 11 fails."""
    machine = start("11.4.0.106")
    with pytest.raises(AttributeError):
        _ = machine.sdk.BuilderFlag.FP16
    with pytest.raises(AttributeError):
        _ = machine.sdk.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    assert strongly_typed(machine.sdk)
    monkeypatch.setattr("engines.backends.tensorrt.build.strongly_typed", lambda sdk: False)
    monkeypatch.setattr(
        "engines.backends.tensorrt.network.held_types", lambda layers: {"HALF": 1, "QUANTIZE": 0, "DEQUANTIZE": 0}
    )
    with pytest.raises((DeployError, AttributeError), match=r"FP16|precision"):
        machine.backend.build(model, BuildConfig("fp16"))


@pytest.mark.parametrize("version", VERSIONS)
def test_options_reach_the_builder(start: Start, model: Path, version: str) -> None:
    machine, said = start(version, AMPERE), list[str]()
    config = tuned(workspace=1 << 28, level=2, aux_streams=0, version_compatible=True, hardware="ampere_plus")
    machine.backend.build(model, replace(config, log=lambda step, text: said.append(f"{step}: {text}")))
    assert "workspace: 256 MiB, as asked" in said
    assert _last(machine, "IBuilderConfig.set_memory_pool_limit") == 1 << 28
    assert _last(machine, "IBuilderConfig.builder_optimization_level") == 2
    assert _last(machine, "IBuilderConfig.max_aux_streams") == 0
    assert _last(machine, "IBuilderConfig.hardware_compatibility_level").name == "AMPERE_PLUS"
    assert machine.sdk.world["flags"] == {"VERSION_COMPATIBLE"}


def test_the_workspace_leaves_room_for_others(start: Start, model: Path) -> None:
    said = list[str]()
    config = BuildConfig(log=lambda step, text: said.append(f"{step}: {text}"))
    start("10.3.0", ORIN).backend.build(model, config)
    assert "workspace: 2048 MiB, half of 4096 MiB free: the CPU lives in the same memory" in said
    machine = start("10.3.0", AMPERE)
    machine.backend.build(model, config)
    assert _last(machine, "IBuilderConfig.set_memory_pool_limit") == FREE - (1 << 30)


@pytest.mark.parametrize(("free", "limit"), [(80_000, 72_000), (8_000, 6_976), (1_000, 500)])
def test_workspace_on_a_gpu_of_its_own_is_what_is_free_less_headroom(free: int, limit: int) -> None:
    assert workspace_limit(TensorRTOptions(), Room(free * MIB, False))[0] == limit * MIB


@pytest.mark.usefixtures("interruptible")
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


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_ignored_where_the_process_was_started_so(start: Start, model: Path) -> None:
    """Under nohup the terminal's Ctrl-C is not for the build."""
    import os
    import signal

    machine = start("10.3.0")
    machine.sdk.world["during"] = lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert machine.backend.build(model, BuildConfig())
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
