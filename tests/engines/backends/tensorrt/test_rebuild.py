"""TensorRT's options from a request into the build and the manifest, and through rebuilds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.backends import get_backend
from engines.bundle import ENGINE, open_bundle
from engines.contract import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.proof.rebuild import rebuild, tuning
from tests.engines.backends.tensorrt.api.machine import AMPERE, ORIN
from tests.engines.conftest import Start


def test_the_timing_cache_lies_beside_the_bundle(start: Start, tmp_path: Path) -> None:
    """One for each SDK and GPU, so that bundles in one folder share it, and none is lost when a bundle is replaced."""
    config = tuning(start("10.3.0", ORIN).backend, tmp_path / "bundles" / "b", TensorRTOptions(), None, print)
    assert config.timing_cache == tmp_path / "bundles" / "tensorrt-10.3.0-sm87-Orin.timing-cache"
    config = tuning(start("10.3.0", AMPERE).backend, tmp_path / "b", TensorRTOptions(), tmp_path / "mine", print)
    assert config.timing_cache == tmp_path / "mine"


def test_what_a_release_lacks_is_refused_before_the_model_is_loaded(start: Start, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"--strip-weights: TensorRT 8\.6\.1 has no such thing"):
        tuning(start("8.6.1").backend, tmp_path / "b", TensorRTOptions(strip_weights=True), None, print)


@pytest.mark.parametrize("hardware", ["same_cc", "ampere_plus"])
def test_hardware_compatible_engines_need_a_gpu_that_can_have_them(start: Start, tmp_path: Path, hardware: str) -> None:
    options, turing = TensorRTOptions(hardware=hardware), replace(AMPERE, name="Tesla T4", sm=(7, 5))
    tuning(start("10.13.3", AMPERE).backend, tmp_path / "b", options, None, print)
    refused = [(ORIN, "not for boards")]
    if hardware == "same_cc":
        tuning(start("10.13.3", turing).backend, tmp_path / "b", options, None, print)
        refused.append((replace(turing, name="Tesla V100", sm=(7, 0)), "from compute capability 7.5 on"))
    else:
        refused.append((turing, "from compute capability 8.0 on"))
    for info, words in refused:
        with pytest.raises(DeployError, match=f"--hardware {hardware}: .*{words}"):
            tuning(start("10.13.3", info).backend, tmp_path / "b", options, None, print)


def test_a_rebuild_keeps_what_the_bundle_was_built_with(
    start: Start, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BuildConfig] = []

    def compile_engine(folder: Path, backend: Any, config: BuildConfig, **rest: Any) -> Sequence[Any]:
        asked.append(config)
        (folder / ENGINE).write_bytes(b"an engine")
        return []

    def again(source: Path, name: str, backend: str, **given: Any) -> TensorRTOptions:
        rebuild(source, tmp_path / name, log=lambda *line: None, backend_name=backend, tensorrt=given)
        return open_bundle(tmp_path / name).manifest.tensorrt

    monkeypatch.setattr("engines.proof.rebuild.compile_engine", compile_engine)
    monkeypatch.setattr("engines.backends.tensorrt.tensorrt.TensorRTBackend.unavailable", lambda backend: None)
    machine = start("10.13.3", AMPERE)
    monkeypatch.setattr(get_backend("tensorrt"), "sdk", lambda: machine.sdk)
    first = again(tiny_bundle, "a", "tensorrt", level=2, hardware="same_cc")
    assert first == asked[-1].tensorrt == TensorRTOptions(level=2, hardware="same_cc")
    assert again(tmp_path / "a", "b", "auto") == asked[-1].tensorrt == first
    second = again(tmp_path / "a", "c", "auto", level=5, strip_weights=True)
    assert second == asked[-1].tensorrt == TensorRTOptions(level=5, hardware="same_cc", strip_weights=True)
    assert again(tmp_path / "c", "d", "openvino") == second  # which does not heed them, and keeps them
    assert asked[-1].tensorrt == TensorRTOptions()
