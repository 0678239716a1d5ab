"""`inspect --gpu-plan`: of a bundle, of an .onnx, of an engine on its GPU, and of what has no graph."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import deploy
from engines.backends.tensorrt.listing import kernels_of, layers_in
from engines.backends.tensorrt.tensorrt_rtx import backend as compiler
from engines.bundle import ENGINE, MODEL, open_bundle, seal
from engines.contract import BuildConfig
from engines.files import file_sha256
from engines.roofline.boards import BOARDS
from tests.engines.backends.tensorrt.api.machine import write_graph
from tests.engines.backends.tensorrt.plans import MACS, RECORDED, one_of_each, saved
from tests.engines.conftest import Start

compiles = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: nothing compiles here"
)


def _inspect(target: Path | str, *words: str) -> int:
    return deploy.main(["inspect", str(target), "--gpu-plan", *words])


@compiles
def test_an_onnx_is_planned_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(one_of_each(), tmp_path / "my.onnx")
    before = path.read_bytes()
    assert _inspect(path) == 0
    text = capsys.readouterr().out
    assert f"plan          {path}, as it is, 1 window of 64x64 pixels\n" in text
    assert "a proxy: " in text
    assert "lower bounds, never latencies" in text
    assert "attentions    1 of 1 fused\n" in text
    assert f"multiply-adds {sum(MACS.values()) / 1e9:.2f} G: fp16 100.0 %\n" in text
    assert all(f"\n{board.name} " in text for board in BOARDS)
    assert "int8" not in text
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@compiles
def test_json_has_all_that_the_text_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _inspect(saved(one_of_each(), tmp_path / "my.onnx"), "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert body["proxy"] is True
    assert body["macs"] == sum(MACS.values())
    assert body["bytes"] == sum(kernel["bytes"] for kernel in body["kernels"])
    assert sum(body["bytes_by_stage"].values()) == sum(body["bytes_by_type"].values()) == body["bytes"]
    for board, floor in zip(BOARDS, body["floors"], strict=True):
        assert floor["board"] == board.name
        assert floor["memory_ms"] == pytest.approx(body["bytes"] / board.gb_per_s / 1e6)
        assert max(floor["memory_ms"], floor["arithmetic_ms"]) <= floor["roofline_ms"]
        assert floor["roofline_ms"] <= floor["memory_ms"] + floor["arithmetic_ms"]


@compiles
def test_of_a_bundle_for_a_cpu_its_graph_is_planned_and_that_is_said(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _inspect(tiny_bundle) == 0
    text = capsys.readouterr().out
    assert f"plan          model.onnx of {tiny_bundle}, 1 window of 96x64 pixels\n" in text
    assert "its engine is openvino's" in text


def _gpu_bundle(source: Path, folder: Path, backend: Any) -> Path:
    """`source`, as if it had been built on the stand-in GPU from a graph that the stand-in reads."""
    shutil.copytree(source, folder)
    write_graph(folder / MODEL)
    (folder / ENGINE).write_bytes(backend.build(folder / MODEL, BuildConfig()))
    manifest = open_bundle(source).manifest
    files = {**manifest.files, **{name: file_sha256(folder / name) for name in (ENGINE, MODEL)}}
    seal(folder, replace(manifest, backend="tensorrt", sdk=backend.version(), device=backend.device(), files=files))
    return folder


def test_on_its_gpu_the_engine_itself_is_asked(
    start: Start, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = start("10.3.0")
    monkeypatch.setattr(type(machine.backend), "unavailable", lambda backend: None)  # no package of that name is here
    bundle = _gpu_bundle(tiny_bundle, tmp_path / "b", machine.backend)
    machine.sdk.world["described"] = layers_in(RECORDED.read_text())
    assert _inspect(bundle) == 0
    text = capsys.readouterr().out
    assert f"plan          the engine of {bundle}, 1 window of 12x8 pixels\n" in text
    assert "read from     TensorRT 10.3.0, the engine itself\n" in text
    assert "proxy" not in text
    moved = sum(kernel.bytes for kernel in kernels_of(layers_in(RECORDED.read_text())))
    assert f"moved         {moved / 1e6:.1f} MB" in text
    assert machine.gpu.held == 0


@compiles
@pytest.mark.parametrize("axes", [(0,), (2, 3)], ids=["batch", "size"])
def test_a_graph_of_no_fixed_size_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], axes: tuple[int, ...]
) -> None:
    model = ir.to_proto(one_of_each().model)
    for axis in axes:
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"free{axis}"
    onnx.save(model, tmp_path / "my.onnx")
    assert _inspect(tmp_path / "my.onnx") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "expected a fixed size of every axis; build a bundle from it, which has one" in error


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("demo", "got demo, expected a bundle or an .onnx: a checkpoint has no graph yet; deploy.py build-engine demo"),
        ("{tmp}", "a checkpoint has no graph yet"),
        ("{tmp}/none.onnx", "where there is no file"),
        ("{tmp}/text.onnx", "cannot take text.onnx"),
    ],
)
def test_what_has_no_graph_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, message: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "text.onnx").write_text("no model at all")
    if "text" in target and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: nothing reads it")
    assert _inspect(target.format(tmp=tmp_path)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error


def test_without_tensorrt_rtx_it_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *at: None if "rtx" in name else found(name, *at))
    assert compiler.cannot_plan() is not None
    assert _inspect(saved(one_of_each(), tmp_path / "my.onnx")) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "the tensorrt_rtx package is not installed" in error
    assert "pip install -e '.[rtx]'" in error
