"""TensorRT's timing cache: kept between builds, never another GPU's, and replaced where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.backends.tensorrt.timing_cache import default_path
from engines.contract import BuildConfig
from tests.engines.backends.tensorrt.api.machine import AMPERE, ORIN, Machine
from tests.engines.conftest import Start

Build = Callable[[Machine], list[bytes]]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def build(model: Path, said: list[str]) -> Build:
    """Builds with the cache beside the model; returns the caches that TensorRT was given, one after the other."""
    path = model.parent / "b.timing-cache"
    config = BuildConfig(timing_cache=path, log=lambda step, text: said.append(text) if "cache" in step else None)

    def run(machine: Machine) -> list[bytes]:
        machine.sdk.log.clear()
        machine.backend.build(model, config)
        return [given[0] for name, given in machine.sdk.log if name == "IBuilderConfig.create_timing_cache"]

    return run


def test_what_was_measured_is_given_to_the_next_build(start: Start, model: Path, build: Build) -> None:
    machine = start("10.3.0")
    assert build(machine) == [b""]
    assert build(machine) == [b"measured;"]
    assert build(start("10.3.0")) == [b"measured;measured;"]
    assert sorted(file.name for file in model.parent.iterdir()) == ["b.timing-cache", "model.onnx"]


def test_another_machines_is_replaced(start: Start, build: Build, said: list[str]) -> None:
    build(start("10.3.0"))
    for version, info, owner in (
        ("10.3.0", AMPERE, "tensorrt 10.3.0 on sm_87 Orin"),
        ("10.3.0", replace(AMPERE, name="NVIDIA RTX 3090"), "tensorrt 10.3.0 on sm_86 NVIDIA A10"),
        ("10.13.3", replace(AMPERE, name="NVIDIA RTX 3090"), "tensorrt 10.3.0 on sm_86 NVIDIA RTX 3090"),
    ):
        machine = start(version, info)
        assert build(machine) == [b""]
        assert f"of {owner}; a new one replaces it" in said[-2]
        assert build(machine) == [b"measured;"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda blob: blob[:-1], id="cut"),
        pytest.param(lambda blob: blob[:-1] + b"x", id="a byte"),
        pytest.param(lambda blob: blob + b"x", id="longer"),
        pytest.param(lambda blob: b"", id="empty"),
        pytest.param(lambda blob: b"something else", id="another file"),
        pytest.param(lambda blob: b"\x00\x01\xff" * 50, id="trtexec's"),
    ],
)
def test_a_damaged_or_foreign_one_is_reported_and_replaced(
    start: Start, model: Path, build: Build, said: list[str], damage: Callable[[bytes], bytes]
) -> None:
    machine, path = start("10.3.0"), model.parent / "b.timing-cache"
    build(machine)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert build(machine) == [b""]
    assert said[-2].endswith("damaged or of another program; a new one replaces it")
    assert path.read_bytes() == whole


def test_one_that_tensorrt_refuses_is_replaced(start: Start, model: Path, build: Build, said: list[str]) -> None:
    machine, path = start("10.3.0"), model.parent / "b.timing-cache"
    build(machine)
    whole = path.read_bytes()
    machine.sdk.world["refuses_cache"] = True
    assert build(machine) == [b"measured;", b""]
    assert "TensorRT does not take it; a new one replaces it" in said[-2]
    assert path.read_bytes() == whole


def test_it_lies_beside_the_bundle_and_names_sdk_and_gpu(tmp_path: Path) -> None:
    path = default_path(tmp_path / "b2", "tensorrt 10.3.0", str(ORIN))
    assert path == tmp_path / "tensorrt-10.3.0-sm87-Orin.timing-cache"
