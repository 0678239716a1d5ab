"""The options of TensorRT's builder: from the command line into the manifest, and kept by a rebuild."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import deploy
from engines.arguments import groups
from engines.bundle import MANIFEST, open_bundle, seal
from engines.contract import TensorRTOptions


def _given(*words: str) -> dict[str, object]:
    return groups.tensorrt_given(deploy._parser().parse_args(["build-engine", "demo", "-o", "out", *words]))


def test_only_what_the_command_line_says_is_set() -> None:
    assert _given() == {}
    given = _given(
        "--workspace", "512", "--opt-level", "5", "--aux-streams", "0", "--version-compatible", "--hardware", "same_cc",
        "--strip-weights",
    )  # fmt: skip
    assert TensorRTOptions(**given) == TensorRTOptions(512 * 2**20, 5, 0, True, "same_cc", True)  # type: ignore[arg-type]
    assert _given("--no-strip-weights") == {"strip_weights": False}  # on a rebuild it takes back what was asked


@pytest.mark.parametrize(
    "words", [["--workspace", "0"], ["--opt-level", "6"], ["--aux-streams", "-1"], ["--hardware", "any"]]
)
def test_nonsense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _given(*words)
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_other_backends_do_not_ignore_them(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--strip-weights"], ["--timing-cache", "x"]):
        argv = ["build-engine", str(tiny_bundle), "-o", str(tmp_path / "out"), "--backend", "openvino", *words]
        assert deploy.main(argv) == 2
        assert "got options of TensorRT; leave them out, or --backend tensorrt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_rebuild_keeps_what_the_bundle_was_built_with(tiny_bundle: Path, tmp_path: Path) -> None:
    """Also by another backend, which has no use for it: the next rebuild may be TensorRT's again."""
    source = tmp_path / "source"
    shutil.copytree(tiny_bundle, source)
    options = TensorRTOptions(level=2, hardware="ampere_plus")
    manifest = open_bundle(source).manifest
    seal(source, type(manifest)(**{**vars(manifest), "tensorrt": options}))
    assert deploy.main(["build-engine", str(source), "-o", str(tmp_path / "again"), "--backend", "openvino"]) == 0
    assert open_bundle(tmp_path / "again").manifest.tensorrt == options
    assert json.loads((tmp_path / "again" / MANIFEST).read_text())["tensorrt"]["level"] == 2


def test_bundles_of_before_load_with_the_option_that_is_gone() -> None:
    old = {"workspace": None, "level": 3, "aux_streams": None, "version_compatible": False, "hardware": "exact",
           "strip_weights": True, "dla": None}  # fmt: skip
    assert TensorRTOptions.from_json(old) == TensorRTOptions(level=3, strip_weights=True)
