"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import engines.files as room
from engines.errors import DeployError
from engines.files import keep_unfinished_in, make_folder, replacing, write_json


def _stopped_half_way(target: Path) -> None:
    with replacing(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        _stopped_half_way(target)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.bin", b"before")]
    with replacing(target) as file:
        file.write(b"after")
        assert target.read_bytes() == b"before"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.bin", b"after")]


def test_what_cannot_be_written_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "missing" / "a", tmp_path / "folder"):
        with pytest.raises(DeployError, match=rf"^ranges {target}: cannot be written: ."), replacing(target, "ranges"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(DeployError, match="cannot be created"):
        make_folder(tmp_path / "file" / "under")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_names_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("n" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_json(target, {"a": [1, None]})
    assert json.loads(target.read_text()) == {"a": [1, None]}


def test_the_file_is_as_public_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_json(tmp_path / "ours", {})
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"miou": float("nan")})
    assert not list(tmp_path.iterdir())


def test_what_is_not_whole_lies_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_unfinished", None)
    (tmp_path / "unfinished").mkdir()
    keep_unfinished_in(tmp_path / "unfinished")
    with replacing(tmp_path / "a.bin") as file:
        file.write(b"half")
        assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]
        assert len(list((tmp_path / "unfinished").iterdir())) == 1
    assert (tmp_path / "a.bin").read_bytes() == b"half"
    (tmp_path / "unfinished").rmdir()  # as its owner does, who is not there any more to remove what would be left
    with pytest.raises(DeployError, match="cannot be written"), replacing(tmp_path / "b.bin"):
        raise AssertionError("begun, though nobody waits for it")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
