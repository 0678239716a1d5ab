"""The repository that `export-triton` writes, without a server: test_triton.py has a real one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import deploy
from engines.bundle import open_bundle, seal
from engines.errors import DeployError
from engines.serving.export import config
from engines.serving.triton import instances, require_first_gpu
from tests.without import deploy_without


def _export(bundle: Path, repository: Path, *options: str) -> int:
    return deploy.main(["export-triton", str(bundle), "-o", str(repository), *options])


def test_a_device_without_torch_and_the_build_rooms_exports(tiny_bundle: Path, tmp_path: Path) -> None:
    argv = ["export-triton", str(tiny_bundle), "-o", str(tmp_path / "models"), "--json"]
    done = deploy_without({"torch", "onnx", "onnxruntime", "pipeline", "calib", "triton_python_backend_utils"}, argv)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    version = tmp_path / "models" / "tiny" / "1"
    assert (said["model"], said["version"], said["path"]) == ("tiny", 1, str(version))
    assert sorted(path.name for path in version.iterdir()) == ["bundle", "engines", "model.py", "requirements.txt"]
    open_bundle(version / "bundle").check()
    needs = (version / "requirements.txt").read_text().split()
    assert needs == said["requirements"]
    assert f"openvino=={open_bundle(tiny_bundle).manifest.sdk.split()[1]}" in needs
    assert not [path for path in version.rglob("*") if path.name == "__pycache__"]
    assert [path.name for path in version.rglob("*.so")] == ["_tile.so"]  # of no particular Python


def test_another_export_adds_a_version_and_leaves_the_users_config_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    assert _export(tiny_bundle, tmp_path / "models", "--name", "streets") == 0
    edited = tmp_path / "models" / "streets" / "config.pbtxt"
    edited.write_text(edited.read_text().replace("max_batch_size: 8", "max_batch_size: 2"))
    assert _export(tiny_bundle, tmp_path / "models", "--name", "streets") == 0
    assert sorted(path.name for path in edited.parent.iterdir()) == ["1", "2", "config.pbtxt"]
    assert "max_batch_size: 2" in edited.read_text()


def _with_other_classes(bundle: Path, folder: Path) -> Path:
    manifest = open_bundle(shutil.copytree(bundle, folder)).manifest
    classes = tuple(f"other {name}" for name in manifest.spec.classes)
    seal(folder, replace(manifest, spec=replace(manifest.spec, classes=classes)))
    return folder


def test_what_is_refused_is_one_line_and_leaves_what_was_there(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    (models / "mine").mkdir(parents=True)
    (models / "mine" / "thesis.txt").write_text("years of work")
    assert _export(tiny_bundle, models) == 0
    changed = shutil.copytree(tiny_bundle, tmp_path / "changed")
    with (changed / "engine.bin").open("ab") as engine:
        engine.write(b"x")
    before = sorted(models.rglob("*"))
    capsys.readouterr()
    for bundle, options, said in (
        (tiny_bundle, ("--name", "mine"), "is no model of Triton"),
        (tiny_bundle, ("--name", "../tiny"), "model name"),
        (_with_other_classes(tiny_bundle, tmp_path / "other"), ("--name", "tiny"), "give another --name"),
        (changed, ("--name", "tiny"), "engine.bin has changed"),
        (changed, ("--name", "new"), "engine.bin has changed"),
        (models, (), "expected a folder made by build-engine"),
    ):
        assert _export(bundle, models, *options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
    assert sorted(models.rglob("*")) == before


def test_an_engine_for_a_gpu_asks_for_the_first_and_takes_no_other(tiny_bundle: Path) -> None:
    """What a server with a GPU makes of it nobody has seen: docs/limits.md."""
    manifest = open_bundle(tiny_bundle).manifest
    assert "kind: KIND_CPU }" in config("tiny", manifest)
    assert "kind: KIND_GPU gpus: [ 0 ] }" in config("tiny", replace(manifest, backend="tensorrt"))
    for kind in ("CPU", "GPU"):
        require_first_gpu({"model_instance_kind": kind, "model_instance_device_id": "0"})
    with pytest.raises(DeployError, match=r"got GPU 1, expected gpus: \[ 0 \]"):
        require_first_gpu({"model_instance_kind": "GPU", "model_instance_device_id": "1"})


@pytest.mark.parametrize(("groups", "count"), [([], 1), ([{"count": 3}], 3), ([{"count": 2}, {"count": 1}], 3)])
def test_instances_divide_the_machine_by_how_many_there_are(groups: list[dict[str, int]], count: int) -> None:
    assert instances({"model_config": json.dumps({"instance_group": groups})}) == count
    assert instances({"model_config": "{}"}) == 1
