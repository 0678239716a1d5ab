"""What is missing where TensorRT cannot be used, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.backends.tensorrt import backend as backend_module
from engines.backends.tensorrt.backend import TensorRTFamily
from engines.machine.jetson import read_jetson
from tests.engines.conftest import Start


@pytest.fixture
def backend(start: Start, monkeypatch: pytest.MonkeyPatch) -> TensorRTFamily:
    """Of a machine that has everything."""
    made = start("10.3.0").backend
    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda name: object())
    return made


def test_nothing_is_missing_where_everything_is_there(backend: TensorRTFamily) -> None:
    assert backend.unavailable() is None


def test_a_package_that_does_not_load(backend: TensorRTFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "libnvdla_compiler.so: cannot open shared object file"

    def fails() -> Any:
        raise ImportError(missing)

    monkeypatch.setattr(backend, "sdk", fails)
    assert "libnvdla_compiler.so is missing; on the board itself: sudo apt install" in str(backend.unavailable())
    missing = "libnvinfer.so.10: wrong ELF class"
    assert "TensorRT does not load (libnvinfer.so.10: wrong ELF class); " in str(backend.unavailable())


def test_a_gpu_that_cannot_be_used(backend: TensorRTFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the package is imported, which is large."""
    monkeypatch.setattr(backend, "sdk", lambda: pytest.fail("imported"))
    reason = "GPU: pycuda is not installed; pip install pycuda"
    monkeypatch.setattr("engines.gpu.context.unavailable", lambda: reason)
    assert backend.unavailable() == reason


def test_a_package_that_is_not_installed(
    backend: TensorRTFamily, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Told before what the GPU lacks; and pip's wheels are not for boards."""
    monkeypatch.setattr("engines.gpu.context.unavailable", lambda: "GPU: none")
    monkeypatch.setattr(backend_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend_module, "read_jetson", lambda: read_jetson(tmp_path))
    assert str(backend.unavailable()).endswith("on a machine with an NVIDIA GPU: pip install -e '.[tensorrt]'")
    (tmp_path / "sys/devices/soc0").mkdir(parents=True)  # all that a container on a board sees of it
    (tmp_path / "sys/devices/soc0/family").write_text("Tegra\n")
    (tmp_path / "sys/devices/soc0/soc_id").write_text("35\n")
    assert "python3-libnvinfer" in str(backend.unavailable())
    assert "--system-site-packages" in str(backend.unavailable())
