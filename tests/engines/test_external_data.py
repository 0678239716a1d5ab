"""A graph whose weights lie beside it, as those above 2 GB do: the same engines, and no other file's weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import deploy
from engines.backends import get_backend
from engines.backends.onnx_bytes import file_with_batch, weights_of
from engines.backends.tensorrt.network import model_sha256
from engines.bundle import FILES, KERNELS, MANIFEST, MODEL, WEIGHTS, Manifest, open_bundle, seal
from engines.contract import BuildConfig
from engines.errors import DeployError
from engines.files import file_sha256
from engines.proof.inspect import inspect_bundle
from engines.proof.rebuild import rebuild
from engines.segmenter import open_segmenter
from tests.without import deploy_without

SHAPES = 256  # bytes: what ONNX Runtime must see in the graph itself
WINDOWS = np.random.default_rng(0).standard_normal((3, 3, 64, 96), dtype=np.float32)


def _split(model: Path, target: Path, threshold: int = 0) -> Path:
    """`model` with its tensors above `threshold` bytes in a file beside it, as `target`."""
    ir.save(ir.load(model), target, external_data=f"{target.name}.data", size_threshold_bytes=threshold)
    return target


@pytest.fixture(scope="module")
def beside(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bundle` with its weights in model.onnx.data."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("bundles") / "beside"))
    (folder / MODEL).unlink()
    _split(tiny_bundle / MODEL, folder / MODEL)
    _seal(folder, MODEL, WEIGHTS)
    return folder


def _seal(folder: Path, *changed: str) -> None:
    """Let the manifest say what these files are now."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["digest"]
    body["files"] |= {name: file_sha256(folder / name) for name in changed}
    seal(folder, Manifest.from_json(body))


@pytest.fixture
def copy(beside: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(beside, tmp_path / "copy"))


def _masks(bundle: Path) -> bytes:
    image = np.random.default_rng(1).integers(0, 256, (150, 333, 3), np.uint8)
    with open_segmenter(bundle) as (segmenter, _):
        return segmenter.segment(image).labels.tobytes()


def _run(backend: str, model: Path, batch: int) -> np.ndarray:
    config = BuildConfig(batch=batch)
    blob = get_backend(backend).build(model, config)
    with get_backend(backend).load(blob, replace(config, model=model)) as session:
        return session.run(WINDOWS[:batch]).copy()


@pytest.mark.parametrize(("backend", "batch"), [("openvino", 1), ("openvino", 3), ("onnxruntime", 1)])
def test_engines_give_the_bits_of_the_single_file(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, batch: int
) -> None:
    """Also where the current directory has weights of that name."""
    model = _split(tiny_bundle / MODEL, tmp_path / MODEL, SHAPES if backend == "onnxruntime" else 0)
    assert weights_of(model) == tmp_path / WEIGHTS
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / WEIGHTS).write_bytes(bytes((tmp_path / WEIGHTS).stat().st_size))
    monkeypatch.chdir(other)
    expected = _run(backend, tiny_bundle / MODEL, batch)
    assert np.array_equal(_run(backend, model, batch), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", MODEL, WEIGHTS]


@pytest.mark.parametrize("batch", [1, 2])
def test_tensorrt_rtx_finds_the_weights(tiny_bundle: Path, tmp_path: Path, batch: int) -> None:
    """By the values of the constants in the network that it made of the file, and by building."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: it is for Linux on x86-64")
    from engines.backends.tensorrt import engine_file
    from engines.backends.tensorrt.messages import logger_of
    from engines.backends.tensorrt.network import ParsedNetwork

    def constants(model: Path) -> list[Any]:
        parsed = ParsedNetwork(trt, "TensorRT-RTX", trt.Builder(logger_of(trt)), logger_of(trt), model, True, batch)
        found = [layer for layer in parsed.layers if layer.type == trt.LayerType.CONSTANT]
        for layer in found:
            layer.__class__ = trt.IConstantLayer  # as NVIDIA's samples do
        return [np.array(layer.weights) for layer in found]

    model = _split(tiny_bundle / MODEL, tmp_path / MODEL)
    single, split = constants(tiny_bundle / MODEL), constants(model)
    assert len(single) > 20
    assert all(np.array_equal(a, b) for a, b in zip(single, split, strict=True))
    header, plan = engine_file.unpack(get_backend("tensorrt_rtx").build(model, BuildConfig(batch=batch)))
    assert len(plan) > 100_000
    assert header.model_sha256 == model_sha256(model) != file_sha256(model)


def test_an_engine_without_weights_takes_no_others(tiny_bundle: Path, tmp_path: Path) -> None:
    """What it was built from is told apart by the weights too, where they are not in the graph's own file."""
    assert model_sha256(tiny_bundle / MODEL) == file_sha256(tiny_bundle / MODEL)
    model = _split(tiny_bundle / MODEL, tmp_path / MODEL)
    before, data = model_sha256(model), bytearray((tmp_path / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / WEIGHTS).write_bytes(data)
    assert model_sha256(model) != before


def test_a_rebuild_takes_the_weights_along(
    tiny_bundle: Path, beside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where neither torch nor onnx is installed, and then in place; and masks stay as they were."""
    argv = ["build-engine", str(beside), "-o", str(tmp_path / "new"), "--batch", "2"]
    done = deploy_without({"torch", "onnx", "onnx_ir", "onnxruntime", "pipeline", "calib"}, argv)
    assert done.returncode == 0, done.stderr
    assert deploy.main(["build-engine", str(tmp_path / "new"), "-o", str(tmp_path / "new"), "--batch", "1"]) == 0
    manifest = open_bundle(tmp_path / "new").manifest
    assert set(manifest.files) == {*FILES, WEIGHTS}
    assert manifest.files[WEIGHTS] == file_sha256(beside / WEIGHTS)
    assert _masks(tmp_path / "new") == _masks(tiny_bundle)


def test_a_model_that_one_file_cannot_hold(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint to the masks, with the limit of 2 GB at a hundred kB."""
    for module in ("proto", "onnx_graph"):
        monkeypatch.setattr(f"pipeline.graph.{module}.LARGEST", 100_000)
    argv = ["build-engine", "tests.models:tiny", "--tile", "64x96", "--stride", "48x64", "--backend", "openvino"]
    assert deploy.main([*argv, "-o", str(tmp_path / "b")]) == 0
    files = open_bundle(tmp_path / "b").manifest.files
    assert set(files) == {*FILES, WEIGHTS}
    assert files[WEIGHTS] == file_sha256(tmp_path / "b" / WEIGHTS)
    assert _masks(tmp_path / "b") == _masks(tiny_bundle)


def test_onnxruntime_runs_a_bundle_from_anywhere(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    (folder / MODEL).unlink()
    _split(tiny_bundle / MODEL, folder / MODEL, SHAPES)
    _seal(folder, MODEL, WEIGHTS)
    rebuild(folder, tmp_path / "c", log=lambda *line: None, backend_name="onnxruntime")
    monkeypatch.chdir(tmp_path)
    with open_segmenter(Path("c")) as (segmenter, manifest):
        assert manifest.backend == "onnxruntime"
        assert segmenter.segment(np.zeros((64, 96, 3), np.uint8)).labels.shape == (64, 96)


def test_inspect_counts_the_weights(beside: Path) -> None:
    result, text = inspect_bundle(open_bundle(beside))
    assert result["sizes"][WEIGHTS] == (beside / WEIGHTS).stat().st_size > 500_000 > result["sizes"][MODEL]
    assert f"{WEIGHTS} 0.7 MB" in text


def test_one_changed_byte_of_the_weights_is_refused(copy: Path) -> None:
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(DeployError, match=r"model\.onnx\.data has changed since it was built"):
        open_bundle(copy).check()


def test_missing_weights_are_named(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(DeployError, match=r"model\.onnx\.data is missing"):
        open_bundle(copy)


def test_weights_that_the_manifest_does_not_list_are_not_used(copy: Path, tmp_path: Path) -> None:
    manifest = open_bundle(copy).manifest
    seal(copy, replace(manifest, files={name: sha for name, sha in manifest.files.items() if name != WEIGHTS}))
    with pytest.raises(DeployError, match=r"model\.onnx: got weights in model\.onnx\.data, expected .* beside it"):
        rebuild(copy, tmp_path / "new", log=lambda *line: None)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "engine.bin"])
def test_weights_from_any_other_place_are_refused(copy: Path, tmp_path: Path, place: str) -> None:
    import onnx

    model = onnx.load(copy / MODEL, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = place
    onnx.save(model, copy / MODEL)
    _seal(copy, MODEL)
    with pytest.raises(DeployError, match=rf"model\.onnx: got weights in .*{place}"):
        rebuild(copy, tmp_path / "new", log=lambda *line: None)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "program.pt2"])
def test_a_manifest_lists_only_files_that_bundles_have(beside: Path, name: str) -> None:
    body = open_bundle(beside).manifest.to_json()
    body["files"] |= {name: "0" * 64}
    with pytest.raises(DeployError, match=f"got the file '{name}', which no bundle has"):
        Manifest.from_json(body)
    body["files"] = dict.fromkeys((*FILES, KERNELS, WEIGHTS), "0" * 64)
    Manifest.from_json(body)


def test_the_file_of_several_windows_is_gone_afterwards(beside: Path) -> None:
    before = {path.name for path in beside.iterdir()}
    with file_with_batch(beside / MODEL, 1) as path:
        assert path == beside / MODEL
    with file_with_batch(beside / MODEL, 3) as path:
        (image,) = ir.load(path).graph.inputs
        assert image.shape == (3, 3, 64, 96)
        assert weights_of(beside / MODEL) == beside / WEIGHTS
    assert {path.name for path in beside.iterdir()} == before
