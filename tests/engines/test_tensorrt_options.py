"""TensorRT's options: from the command line into the builder and the manifest, and through rebuilds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import deploy
from engines.arguments import tensorrt_given
from engines.assemble import rebuild, tuning
from engines.base import BuildConfig, TensorRTOptions, get_backend
from engines.bundle import ENGINE, open_bundle
from engines.errors import DeployError
from tests.engines.conftest import Start
from tests.engines.tensorrt_api.machine import AMPERE, ORIN

ASKED = {
    "workspace": 512 << 20, "level": 4, "aux_streams": 0, "version_compatible": True, "hardware": "same_cc",
    "strip_weights": True, "dla": 1,
}  # fmt: skip
WORDS = "--workspace 512 --opt-level 4 --aux-streams 0 --version-compatible --hardware same_cc --strip-weights --dla 1"


def _given(words: str) -> dict[str, Any]:
    return tensorrt_given(deploy._parser().parse_args(["build-engine", "demo", "-o", "b", *words.split()]))


def test_every_option_is_read() -> None:
    assert _given(WORDS) == ASKED
    assert set(ASKED) == set(TensorRTOptions().to_json())
    assert _given("") == {}
    assert _given("--no-strip-weights") == {"strip_weights": False}


@pytest.mark.parametrize("words", ["--workspace 0", "--opt-level 6", "--aux-streams -1", "--hardware any", "--dla x"])
def test_nonsense_is_refused(words: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        _given(words)


def test_other_backends_say_that_these_are_not_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["build-engine", "tests.models:tiny", "-o", str(tmp_path / "b"), "--tile", "64", "--backend", "openvino"]
    for words in (["--workspace", "100"], ["--timing-cache", str(tmp_path / "cache")]):
        assert deploy.main([*argv, *words]) == 2
        assert "error: --backend openvino: got options of TensorRT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_timing_cache_lies_beside_the_bundle(start: Start, tmp_path: Path) -> None:
    """One for each SDK and GPU, so that bundles in one folder share it, and none is lost when a bundle is replaced."""
    config = tuning(start("10.3.0", ORIN).backend, tmp_path / "bundles" / "b", TensorRTOptions(), None, print)
    assert config.timing_cache == tmp_path / "bundles" / "tensorrt-10.3.0-sm87-Orin.timing-cache"
    config = tuning(start("10.3.0", AMPERE).backend, tmp_path / "b", TensorRTOptions(), tmp_path / "mine", print)
    assert config.timing_cache == tmp_path / "mine"


def test_what_a_release_lacks_is_refused_before_the_model_is_loaded(start: Start, tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"--strip-weights: TensorRT 8\.6\.1 has no such thing"):
        tuning(start("8.6.1").backend, tmp_path / "b", TensorRTOptions(strip_weights=True), None, print)


def test_a_rebuild_keeps_what_the_bundle_was_built_with(
    start: Start, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[BuildConfig] = []

    def compile_engine(folder: Path, backend: Any, config: BuildConfig, *rest: Any) -> Sequence[Any]:
        asked.append(config)
        (folder / ENGINE).write_bytes(b"an engine")
        return []

    def again(source: Path, name: str, backend: str, **given: Any) -> TensorRTOptions:
        rebuild(source, tmp_path / name, backend, 0, None, None, lambda *line: None, None, given)
        return open_bundle(tmp_path / name).manifest.tensorrt

    monkeypatch.setattr("engines.assemble.compile_engine", compile_engine)
    monkeypatch.setattr("engines.tensorrt_backend.TensorRTBackend.unavailable", lambda backend: None)
    machine = start("10.13.3", ORIN)
    monkeypatch.setattr(get_backend("tensorrt"), "sdk", lambda: machine.sdk)
    first = again(tiny_bundle, "a", "tensorrt", level=2, hardware="same_cc")
    assert first == asked[-1].tensorrt == TensorRTOptions(level=2, hardware="same_cc")
    assert again(tmp_path / "a", "b", "auto") == asked[-1].tensorrt == first
    second = again(tmp_path / "a", "c", "auto", level=5, strip_weights=True)
    assert second == asked[-1].tensorrt == TensorRTOptions(level=5, hardware="same_cc", strip_weights=True)
    assert again(tmp_path / "c", "d", "openvino") == second  # which does not heed them, and keeps them
    assert asked[-1].tensorrt == TensorRTOptions()
