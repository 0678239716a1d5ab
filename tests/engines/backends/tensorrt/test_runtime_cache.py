"""What TensorRT-RTX compiles when an engine first runs on a GPU is kept, and given to it the next time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engines.backends.tensorrt.session import TensorRTSession
from engines.contract import BuildConfig
from tests.engines.backends.tensorrt.api.fakes import RTX, called
from tests.engines.backends.tensorrt.api.machine import AMPERE, TYPED, WINDOW, Machine
from tests.engines.conftest import Start

OTHER = replace(AMPERE, name="NVIDIA RTX 3090")


def _found(machine: Machine, blob: bytes, given: bytes = b"") -> bytes:
    """What a process that is given a cache has to keep at its end."""
    with machine.backend.load(blob, BuildConfig(runtime_cache=given)) as session:
        session.run(WINDOW)
        assert isinstance(session, TensorRTSession)
        return session.runtime_cache


def test_nothing_is_compiled_twice(start: Start, model: Path) -> None:
    machine = start(RTX, AMPERE)
    blob = machine.backend.build(model, BuildConfig())
    kept = _found(machine, blob)
    assert (kept, machine.sdk.world["compiled"]) == (b"code for NVIDIA A10", 1)
    again = start(RTX, AMPERE)
    assert _found(again, blob, kept) == b"", "nothing new to keep"
    assert "compiled" not in again.sdk.world


def test_that_of_another_gpu_is_replaced(start: Start, model: Path) -> None:
    machine = start(RTX, AMPERE)
    blob = machine.backend.build(model, BuildConfig())
    kept = _found(machine, blob)
    elsewhere = start(RTX, OTHER)
    assert _found(elsewhere, blob, kept) == b"code for NVIDIA RTX 3090"
    assert elsewhere.sdk.world["compiled"] == 1


def test_a_second_context_takes_what_the_first_compiled(start: Start, model: Path) -> None:
    machine = start(RTX, AMPERE)
    blob = machine.backend.build(model, BuildConfig())
    with machine.backend.load(blob, BuildConfig()) as session:
        assert session.another().runtime_cache == session.runtime_cache == b"code for NVIDIA A10"
    assert machine.sdk.world["compiled"] == 1


@pytest.mark.parametrize("version", TYPED)
def test_tensorrt_compiles_nothing_then(start: Start, model: Path, version: str) -> None:
    machine = start(version, AMPERE)
    blob = machine.backend.build(model, BuildConfig())
    assert _found(machine, blob, b"whatever") == b""
    assert not any(name.startswith(("IRuntimeC", "ICudaEngine.create_runtime")) for name in called(machine.sdk))
