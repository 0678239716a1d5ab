"""A bundle whose engine ends before the decoder's tail is built, run, rebuilt and refused like any other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import pipeline.build
from engines.bundle import MANIFEST, MODEL, TAIL, Manifest, open_bundle
from engines.errors import DeployError
from engines.proof.inspect import inspect_bundle, inspect_layers
from engines.proof.rebuild import rebuild
from engines.segmenter import open_segmenter
from engines.tiling.placement import Tiling
from pipeline.graph.tail import suits
from pipeline.request import BuildRequest

pytestmark = pytest.mark.usefixtures("exports_once")

TILING = Tiling(64, 96, 48, 64)
IMAGE = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)


def _built(folder: Path, **changes: Any) -> tuple[Path, list[str]]:
    """A bundle for the CPU, where a tail is otherwise left in the engine."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.build, "suits", lambda backend: True)
        request = BuildRequest("tests.models:tiny", folder, TILING, backend="openvino", **{"tail": True, **changes})
        pipeline.build.build_bundle(request, lambda step, text: said.append(f"{step}: {text}"))
    return folder, said


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    return _built(tmp_path_factory.mktemp("bundles") / "tail")


@pytest.fixture
def copy(built: tuple[Path, list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "copy"))


def _logits(folder: Path) -> np.ndarray:
    with open_segmenter(folder) as (segmenter, _):
        window = segmenter.first_window(IMAGE)
        return np.array(segmenter.session.run(window))


def _labels(folder: Path) -> np.ndarray:
    with open_segmenter(folder) as (segmenter, _):
        return segmenter.segment(IMAGE).labels


def test_logits_and_labels_are_those_of_the_engine_without_a_tail(
    built: tuple[Path, list[str]], tiny_bundle: Path
) -> None:
    expected, got = _logits(tiny_bundle), _logits(built[0])
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (_labels(built[0]) == _labels(tiny_bundle)).mean() > 0.9999


def test_the_bundle_says_what_it_is_and_how_it_was_verified(built: tuple[Path, list[str]], tiny_bundle: Path) -> None:
    folder, said = built
    manifest = open_bundle(folder).manifest
    assert manifest.tail is not None
    assert TAIL in manifest.files
    assert manifest.output_shape == open_bundle(tiny_bundle).manifest.output_shape
    assert [step["step"] for step in manifest.verification] == [
        "export", "simplify", "rewrite", "tail", "engine", "tiled mask"
    ]  # fmt: skip
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    result, text = inspect_bundle(open_bundle(folder))
    assert result["tail"]["maps"] == ((8, 12), (4, 6), (2, 3))
    assert "a kernel makes the logits" in text
    assert inspect_layers(open_bundle(folder))[0]
    assert any(line.startswith("tail: the engine ends in 4 maps") for line in said)


def test_other_bundles_have_none(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.tail is None
    older = json.loads(json.dumps(manifest.to_json()))
    del older["tail"]  # of a version that knew of none
    assert Manifest.from_json(older) == manifest


def test_it_stays_in_the_engine_unless_asked_for(tmp_path: Path) -> None:
    folder, said = _built(tmp_path / "b", tail=False)
    assert open_bundle(folder).manifest.tail is None
    assert not any("tail" in line for line in said)


def test_a_cpu_keeps_it_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    request = BuildRequest("tests.models:tiny", tmp_path / "b", TILING, backend="openvino", tail=True)
    pipeline.build.build_bundle(request, lambda step, text: said.append(f"{step}: {text}"))
    assert open_bundle(tmp_path / "b").manifest.tail is None
    assert [line for line in said if "tail" in line] == [
        "warning: --tail: openvino keeps a decoder's tail in the engine, expected a GPU"
    ]


def test_where_it_cannot_be_cut_the_log_says_why(tmp_path: Path) -> None:
    folder, said = _built(tmp_path / "b", rewrites=False)
    assert open_bundle(folder).manifest.tail is None
    assert "tail: left in the engine: no map is upsampled, so there is nothing to gain" in said


def test_a_lowered_graph_gives_maps_in_its_type(tmp_path: Path) -> None:
    folder, _ = _built(tmp_path / "b", precision="fp16")
    assert open_bundle(folder).manifest.tail is not None
    model = ir.load(folder / MODEL)
    assert {output.dtype for output in model.graph.outputs} == {ir.DataType.FLOAT16}
    whole, _ = _built(tmp_path / "whole", precision="fp16", tail=False)
    assert (_labels(folder) == _labels(whole)).mean() > 0.99


def test_a_rebuild_keeps_it_and_takes_several_windows(built: tuple[Path, list[str]], tmp_path: Path) -> None:
    manifest = rebuild(built[0], tmp_path / "b", log=lambda *_: None, batch=2)
    assert manifest.tail == open_bundle(built[0]).manifest.tail
    assert (_labels(tmp_path / "b") == _labels(built[0])).all()


@pytest.mark.parametrize("damage", ["byte", "missing"])
def test_a_changed_or_missing_file_is_refused(copy: Path, damage: str) -> None:
    if damage == "missing":
        (copy / TAIL).unlink()
    else:
        data = bytearray((copy / TAIL).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / TAIL).write_bytes(data)
    with pytest.raises(DeployError, match=TAIL), open_segmenter(copy):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 4}, "got a tail for 4 classes"),
        ({"height": 15}, "got a tail for 5 classes at 15x24"),
        ({"inputs": 3}, "multiples of 4"),
        ({"maps": [[8, 12, 1]]}, "tail: maps"),
        ({"channels": "many"}, "tail: channels"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_a_tail_that_does_not_fit_the_manifest_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    body = json.loads((copy / MANIFEST).read_text())
    body.pop("digest")
    body["tail"].update(changes)
    with pytest.raises(DeployError, match=message):
        Manifest.from_json(body)


def test_weights_and_record_go_together(copy: Path, tiny_bundle: Path) -> None:
    manifest, other = open_bundle(copy).manifest, open_bundle(tiny_bundle).manifest
    for wrong in (replace(manifest, tail=None), replace(other, tail=manifest.tail)):
        with pytest.raises(DeployError, match="without the other"):
            Manifest.from_json(json.loads(json.dumps(wrong.to_json())))


def test_it_suits_backends_that_take_the_graph_to_a_gpu() -> None:
    from engines.backends import get_backend

    names = ("openvino", "onnxruntime", "torch_cuda", "tensorrt", "tensorrt_rtx")
    assert [name for name in names if suits(get_backend(name))] == ["tensorrt", "tensorrt_rtx"]
