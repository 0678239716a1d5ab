"""Hostile, damaged and foreign files: one line each, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoints import load_model
from tests.pipeline.checkpoints.published import (
    refusal,
    save,
)


class Payload:
    """Unpickling this with a full unpickler creates the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


class Foreign:
    """A class that only its own framework knows, as mmengine's HistoryBuffer."""


@pytest.mark.parametrize("place", ["meta", "tensor", "top", "folder"])
def test_code_in_a_pickle_is_never_run(place: str, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    path = tmp_path / "hostile.pth"
    payload = Payload(target)
    if place == "folder":
        (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
        path = tmp_path / "pytorch_model.bin"
    state = {"backbone.a": torch.zeros(2)}
    content: dict[str, object] = {
        "meta": {"state_dict": state, "meta": payload},
        "tensor": {**state, "backbone.extra": payload},
    }
    torch.save(content.get(place, payload), path)
    message = refusal(lambda: load_model(str(tmp_path if place == "folder" else path)))
    assert re.search(r"would run \w+\.system, expected", message)
    assert not target.exists()
    # The same file does run under the full unpickler: the test is not vacuous.
    torch.load(path, weights_only=False)
    assert target.exists()


def test_bare_pickle_is_never_run(tmp_path: Path) -> None:
    target, path = tmp_path / "owned", tmp_path / "hostile.pth"
    path.write_bytes(pickle.dumps(Payload(target)))
    refusal(lambda: load_model(str(path)))
    assert not target.exists()


def test_foreign_classes_in_meta_are_named(tmp_path: Path) -> None:
    message = refusal(lambda: load_model(save(tmp_path / "a.pth", {"backbone.a": torch.zeros(2)}, {"hook": Foreign()})))
    assert "tests.pipeline.checkpoints.test_files.Foreign" in message
    assert 'torch.save({k: ckpt[k] for k in ("state_dict", "meta")}, ...)' in message


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_torch_files_are_told(legacy: bool, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "cut.pth"
    content = {"state_dict": {"backbone.a": torch.arange(4096.0)}}
    torch.save(content, whole, _use_new_zipfile_serialization=not legacy)
    data = whole.read_bytes()
    for length in (*range(1, 200, 7), *range(200, len(data), 511), len(data) - 1):
        path.write_bytes(data[:length])
        assert str(path) in refusal(lambda: load_model(str(path)))


def test_flipped_bytes_never_leave_a_traceback(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "flipped.pth"
    torch.save({"state_dict": {"backbone.a": torch.arange(64.0)}}, whole)
    data = whole.read_bytes()
    random = torch.Generator().manual_seed(4)
    for _ in range(300):
        damaged = bytearray(data)
        for position in torch.randint(len(data), (3,), generator=random).tolist():
            damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        refusal(lambda: load_model(str(path)))  # undamaged, its layout is unknown, which is a DeployError too


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "got an empty file"),
        ("a.safetensors", b"", "got an empty file"),
        ("a.pth", b"<html><body>404</body></html>", "not a torch checkpoint"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a Git LFS pointer"),
        ("a.safetensors", b"hello, this is text", "got a damaged file"),
        ("a.safetensors", b"\xff" * 64, "got a damaged file"),
    ],
)
def test_files_that_are_no_checkpoint(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(lambda: load_model(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "got an empty one, expected a state dict"),
        ([torch.zeros(1)], "got a list, expected a state dict"),
        (torch.zeros(1), "got a Tensor, expected a state dict"),
        ({"epoch": 3}, "got int at 'epoch', expected tensors by name"),
        ({"models": {"a": torch.zeros(1)}}, "got dict at 'models'"),
        ({3: torch.zeros(1)}, "got Tensor at 3"),
    ],
)
def test_torch_files_without_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert message in refusal(lambda: load_model(str(tmp_path / "a.pth")))


def test_newer_pickle_protocols_are_told(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth", pickle_protocol=4)
    assert "leave out pickle_protocol" in refusal(lambda: load_model(str(tmp_path / "a.pth")))


def test_torchscript_archive_is_told(tmp_path: Path) -> None:
    """Only the directory of such an archive matters: that is what torch.load looks at."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "byteorder"):
            archive.writestr(f"archive/{name}", b"3\n")
    assert "got a TorchScript archive" in refusal(lambda: load_model(str(tmp_path / "a.pt")))


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    assert "got no such file" in refusal(lambda: load_model(str(tmp_path / "absent.pth")))
    assert "check the path" in refusal(lambda: load_model("segformer-b0"))
    message = refusal(lambda: load_model("demo", weights=tmp_path / "w.pth"))
    assert "expected a Python factory" in message
