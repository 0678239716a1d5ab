"""Fixtures of the engines' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.backends.tensorrt.api.machine import ORIN, Machine, write_graph

Start = Callable[..., Machine]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """``start(version, gpu)``: from now on this is a machine with that TensorRT and that GPU."""
    return lambda version, info=ORIN: Machine(monkeypatch, version, info)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A graph that the fake TensorRT parses."""
    return write_graph(tmp_path / "model.onnx")
