"""Engines are loaded on what they were built for, and refused elsewhere before TensorRT sees a byte of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.backends.tensorrt.engine_file import (
    MAGIC,
    Header,
    digest,
    pack,
    refused_device,
    refused_sdk,
    refuses,
    unpack,
)
from engines.contract import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.gpu.info import GpuInfo
from tests.engines.backends.tensorrt.api.fakes import RTX, called
from tests.engines.backends.tensorrt.api.machine import AMPERE, ORIN, WINDOW, Machine, tuned
from tests.engines.conftest import Start

H100 = GpuInfo("NVIDIA H100 80GB HBM3", (9, 0), 13000, 80 << 30, False)
H200 = replace(H100, name="NVIDIA H200")
A100 = GpuInfo("NVIDIA A100", (8, 0), 13000, 40 << 30, False)


def _refused(machine: Machine, blob: bytes, words: str) -> None:
    machine.sdk.log.clear()
    with pytest.raises(DeployError, match=words), machine.backend.load(blob, BuildConfig()):
        pass
    with pytest.raises(DeployError, match=words):
        machine.backend.layers(blob, BuildConfig(), WINDOW)
    assert not called(machine.sdk), "the SDK was touched"


def test_other_machines_are_refused_before_deserialising(start: Start, model: Path) -> None:
    blob = start("10.3.0").backend.build(model, BuildConfig())
    _refused(start("10.13.3"), blob, "built with 'tensorrt 10.3.0', but this is 'tensorrt 10.13.3'")
    patched = start("10.3.0")
    patched.sdk.__version__ = "10.3.1"
    _refused(patched, blob, "built with 'tensorrt 10.3.0', but this is 'tensorrt 10.3.1'")
    _refused(start("10.3.0", AMPERE), blob, "sm_87 .*but this is .*sm_86")
    _refused(start("10.3.0", replace(ORIN, name="Orin NX")), blob, "Orin NX")
    _refused(start("10.3.0", replace(ORIN, driver=12020)), blob, "driver for CUDA 12.6, but .* 12.2")
    with start("10.3.0", replace(ORIN, driver=13000)).backend.load(blob, BuildConfig()) as session:
        session.run(WINDOW)


def test_an_engine_of_an_agx_orin_is_refused_on_an_orin_nx_which_has_its_name(start: Start, model: Path) -> None:
    agx = replace(ORIN, memory=61 << 30, multiprocessors=16, module="p3701-0005")
    nx = replace(ORIN, memory=15 << 30, multiprocessors=8, module="p3767-0000")
    blob = start("10.3.0", agx).backend.build(model, BuildConfig())
    _refused(
        start("10.3.0", nx), blob, r"built on .*Orin \[16 SM, 64 GB, p3701-0005\].*Orin \[8 SM, 16 GB, p3767-0000\]"
    )
    for here in (agx, replace(agx, multiprocessors=8)):
        with start("10.3.0", here).backend.load(blob, BuildConfig()) as session:
            session.run(WINDOW)
    before = start("10.3.0").backend.build(model, BuildConfig())  # by a version that did not know them
    with start("10.3.0", nx).backend.load(before, BuildConfig()) as session:
        session.run(WINDOW)


def test_a_changed_byte_is_refused_before_deserialising(start: Start, model: Path) -> None:
    machine = start("10.3.0")
    blob = machine.backend.build(model, BuildConfig())
    start_of_plan = len(blob) - unpack(blob)[0].plan_bytes
    for place in range(0, len(blob), 7):
        changed = bytearray(blob)
        changed[place] ^= 4
        if place >= start_of_plan:
            words = "its plan has changed"
        else:
            words = "got a file of another kind" if place < len(MAGIC) else "its header has changed"
        _refused(machine, bytes(changed), words)
    bytes_of_plan = len(blob) - start_of_plan
    _refused(machine, blob[:-3], f"got {bytes_of_plan - 3} bytes of plan, expected {bytes_of_plan}")
    _refused(machine, blob + b"x", f"got {bytes_of_plan + 1} bytes of plan, expected {bytes_of_plan}")
    for cut in (start_of_plan - 1, len(MAGIC) + 20, len(MAGIC) + 3):
        _refused(machine, blob[:cut], "its header has changed")
    for other in (b"", blob[:5], b"ftrt" + blob):
        _refused(machine, other, "got a file of another kind")


@pytest.mark.parametrize(
    ("built", "here", "loads"),
    [
        ("8.6.1", "10.3.0", True), ("10.3.0", "10.16.1.11", True), ("10.13.3", "11.4.0.106", True),
        ("8.6.1", "11.4.0.106", False), ("11.4.0.106", "10.16.1.11", False), ("10.3.0", "8.6.1", False),
        ("10.13.3", "10.3.0", False),
    ],
)  # fmt: skip
def test_version_compatible_engines_go_upward(start: Start, model: Path, built: str, here: str, loads: bool) -> None:
    config = tuned(version_compatible=True)
    blob = start(built).backend.build(model, config)
    machine = start(here)
    reason = machine.backend.refuses(f"tensorrt {built}", str(ORIN), config)
    if loads:
        assert reason is None
        with machine.backend.load(blob, replace(config, host_code=True)) as session:
            session.run(WINDOW)
        assert ("Runtime.engine_host_code_allowed", (True,)) in machine.sdk.log
    else:
        assert f"built with 'tensorrt {built}'" in str(reason)
        _refused(machine, blob, f"built with 'tensorrt {built}'")


def test_hardware_compatible_engines_run_on_other_gpus(start: Start, model: Path) -> None:
    other, ada = replace(AMPERE, name="NVIDIA RTX 3090"), replace(AMPERE, name="NVIDIA L4", sm=(8, 9))
    turing = replace(AMPERE, name="Tesla T4", sm=(7, 5))
    for hardware, fits, not_fits in (("same_cc", [other], [ada, turing]), ("ampere_plus", [other, ada], [turing])):
        blob = start("10.13.3", AMPERE).backend.build(model, tuned(hardware=hardware))
        for info in fits:
            with start("10.13.3", info).backend.load(blob, BuildConfig()) as session:
                session.run(WINDOW)
        for info in not_fits:
            _refused(start("10.13.3", info), blob, "but this is")


@pytest.mark.parametrize(
    ("built", "here", "options", "loads"),
    [
        (("10.3.0", H100), ("10.3.0", H100), {}, True),
        (("10.3.0", H100), ("10.3.0", H200), {}, False),
        (("10.3.0", H100), ("10.3.0", replace(H100, driver=13010)), {}, True),
        (("10.3.0", H100), ("10.3.0", replace(H100, driver=12080)), {}, False),
        (("10.3.0", H100), ("10.3.0", H200), {"hardware": "same_cc"}, True),
        (("10.3.0", H100), ("10.3.0", A100), {"hardware": "same_cc"}, False),
        (("10.3.0", A100), ("10.3.0", H100), {"hardware": "ampere_plus"}, True),
        (("10.3.0", A100), ("10.3.0", replace(A100, name="T4", sm=(7, 5))), {"hardware": "ampere_plus"}, False),
        (("8.6.1", H100), ("10.16.1.11", H100), {"version_compatible": True}, True),
        (("10.3.0", H100), ("11.4.0.106", H100), {"version_compatible": True}, True),
        (("10.3.0", H100), ("10.16.1.11", H100), {"version_compatible": True}, True),
        (("10.16.1.11", H100), ("10.3.0", H100), {"version_compatible": True}, False),
        (("8.6.1", H100), ("11.4.0.106", H100), {"version_compatible": True}, False),
        (("11.4.0.106", H100), ("10.16.1.11", H100), {"version_compatible": True}, False),
        (("10.3.0", H100), ("10.16.1.11", H100), {}, False),
        (("10.3.0", H100), ("11.4.0.106", H200), {"version_compatible": True}, False),
    ],
)
def test_what_compatible_engines_load_on(built: Any, here: Any, options: dict[str, Any], loads: bool) -> None:
    """By the manifest's words and by the engine's own header alike."""
    asked = TensorRTOptions(**options)
    old = f"tensorrt {built[0]}", str(built[1])
    now = f"tensorrt {here[0]}", str(here[1])
    assert (refuses(Header(*old, asked, (), "", "", 0), *now, ahead=False) is None) == loads
    reason = refused_sdk(old[0], now[0], asked) or refused_device(old[1], now[1], asked, ahead=False)
    assert (reason is None) == loads


def test_the_manifest_is_judged_by_the_same_rules(start: Start) -> None:
    backend, compatible = start("11.4.0.106", H100).backend, tuned(version_compatible=True)
    assert backend.refuses("tensorrt 10.3.0", str(H100), compatible) is None
    assert backend.refuses("tensorrt 10.3.0", str(H100), BuildConfig()) is not None
    assert backend.refuses("openvino 2026.4", "cpu x86_64", compatible) is not None
    assert backend.refuses("tensorrt 11.4.0.106", "cpu x86_64", compatible) is not None
    assert backend.refuses("another 10.3.0", str(H100), compatible) is not None  # whatever its number


def test_the_header_says_what_was_built(start: Start, model: Path) -> None:
    options = TensorRTOptions(level=1, hardware="ampere_plus")
    blob = start("10.16.1.11", AMPERE).backend.build(model, BuildConfig(tensorrt=options))
    header, plan = unpack(blob)
    assert (header.sdk, header.device, header.options) == ("tensorrt 10.16.1.11", str(AMPERE), options)
    assert json.loads(bytes(plan))["io"][0][0] == "image"


def test_the_header_survives_json() -> None:
    header = Header("a 1", "b", TensorRTOptions(level=2), ("SM86",), "c", digest(b"plan"), 4)
    again, plan = unpack(pack(header, b"plan"))
    assert again == header
    assert bytes(plan) == b"plan"
    assert json.loads(json.dumps(header.options.to_json()))["level"] == 2


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
