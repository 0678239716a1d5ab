"""Bundles: nothing half-made, nothing lost, nothing loaded that is not what was built."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.backends import get_backend
from engines.bundle import ENGINE, FILES, GOLDEN, MANIFEST, MODEL, REPORT, Manifest, open_bundle, writing
from engines.errors import DeployError
from engines.files import file_sha256
from engines.proof.golden import Golden
from engines.segmenter import open_segmenter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def test_manifest_round_trips_through_json(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_one_changed_byte_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(DeployError, match=name):
        open_bundle(copy).check()
    if name not in (ENGINE, MANIFEST):  # not for running
        with open_segmenter(copy):
            pass
        return
    with pytest.raises(DeployError, match=name), open_segmenter(copy):
        pass


OPENS = """
import sys
from collections import Counter
from pathlib import Path
from engines.segmenter import open_segmenter
folder, opened = Path(sys.argv[1]), Counter()
def count(event, arguments):
    if event == "open" and Path(str(arguments[0])).parent == folder:
        opened[Path(arguments[0]).name] += 1
sys.addaudithook(count)
with open_segmenter(folder):
    print(*sorted(opened.items()))
"""


def test_running_opens_the_manifest_and_the_engine_once_and_nothing_else(tiny_bundle: Path) -> None:
    """What was hashed is what is loaded: there is no second reading that could find another file."""
    done = subprocess.run([sys.executable, "-c", OPENS, tiny_bundle], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "('engine.bin', 1) ('manifest.json', 1)", done.stderr


def test_a_backend_that_reads_the_graph_gets_a_copy_that_was_checked(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, backend = open_bundle(copy), get_backend("openvino")
    monkeypatch.setattr(type(backend), "reads_graph", lambda self, config: True)
    with bundle.engine(backend, 1) as (blob, config):
        assert hashlib.sha256(blob).hexdigest() == bundle.manifest.files[ENGINE]
        assert config.model is not None
        folder = config.model.parent
        assert folder.stat().st_mode & 0o777 == 0o700
        (copy / MODEL).write_bytes(b"another, a moment later")
        assert file_sha256(config.model) == bundle.manifest.files[MODEL]
    assert not folder.exists()
    with pytest.raises(DeployError, match=rf"{MODEL} has changed"), bundle.engine(backend):
        pass


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(DeployError, match=f"{name} is missing"):
        open_bundle(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100000, '{"schema": 1}', '{"schema": 99}'])
def test_a_foreign_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(DeployError, match="manifest"):
        open_bundle(copy)


def test_an_empty_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="expected a folder made by build-engine"):
        open_bundle(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("device", "cpu of another kind"), ("sdk", "openvino 1999.1")])
def test_another_device_or_sdk_is_refused_with_the_command_that_rebuilds(copy: Path, field: str, value: str) -> None:
    from dataclasses import replace

    from engines.bundle import seal

    seal(copy, replace(open_bundle(copy).manifest, **{field: value}))
    with pytest.raises(DeployError, match=rf"{value}.*build-engine {copy}"), open_segmenter(copy):
        pass


def test_an_engine_that_the_sdk_cannot_read_is_an_error(copy: Path) -> None:
    from dataclasses import replace

    from engines.bundle import seal

    manifest = open_bundle(copy).manifest
    (copy / ENGINE).write_bytes(b"not an engine")
    seal(copy, replace(manifest, files={**manifest.files, ENGINE: file_sha256(copy / ENGINE)}))
    with pytest.raises(DeployError, match="cannot load the engine"), open_segmenter(copy):
        pass


def _spoil(copy: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of the bundle, and every digest with it."""
    data = json.loads((copy / name).read_text())
    edit(data)
    (copy / name).write_text(json.dumps(data))
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"] |= {name: file_sha256(copy / name)} if name != MANIFEST else {}
    del manifest["digest"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (copy / MANIFEST).write_text(json.dumps(manifest | {"digest": digest}))


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["tiling"].update(window_h=32, stride_h=32),
        lambda m: m["tiling"].update(window_h=10**12),
        lambda m: (m["spec"]["classes"].pop(), m["spec"]["palette"].pop()),
        lambda m: m.update(input_shape=[1, 3, 64]),
        lambda m: m.update(output_shape=[1]),
        lambda m: m.update(verification=[1]),
        lambda m: m["spec"]["palette"].__setitem__(0, [256, 0, 0]),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    _spoil(copy, MANIFEST, edit)
    with pytest.raises(DeployError, match=r"manifest|tiling|palette"):
        open_bundle(copy)


@pytest.mark.parametrize("history", [None, [1], [{}], [{"rule": "x", "count": "many"}]])
def test_a_report_without_a_history_is_an_error(copy: Path, history: object) -> None:
    _spoil(copy, REPORT, lambda report: report.update(history=history))
    with pytest.raises(DeployError, match=r"report\.json"):
        open_bundle(copy).report()


def test_a_failed_write_leaves_what_was_there(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def killed_half_way() -> None:
        with writing(copy) as folder:
            (folder / ENGINE).write_bytes(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed_half_way()
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_finished_write_replaces_the_old_bundle(copy: Path) -> None:
    with writing(copy) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in copy.iterdir()] == ["new"]
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_link_stays_a_link_and_its_target_is_replaced(copy: Path) -> None:
    link = copy.with_name("latest")
    link.symlink_to(copy, target_is_directory=True)
    with writing(link) as folder:
        (folder / "new").write_text("x")
    assert link.readlink() == copy
    assert [path.name for path in copy.iterdir()] == ["new"]
    assert sorted(path.name for path in copy.parent.iterdir()) == sorted([copy.name, "latest"])


def test_what_cannot_be_replaced_is_refused_before_the_work(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    for place in (Path(), copy):
        with pytest.raises(DeployError, match="is the current directory"), writing(place):
            pass
    monkeypatch.chdir("/")
    monkeypatch.setattr("os.path.ismount", lambda path: path == copy)
    with pytest.raises(DeployError, match="is a mount point"), writing(copy):
        pass
    assert (copy / ENGINE).is_file()


def test_a_full_disk_is_one_line(copy: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(DeployError, match="No space left on device; free some space"), writing(copy):
        Path("/dev/full").write_bytes(b"x")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replacement_in_one_step_and_in_two(copy: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr("engines.files._exchanged", lambda one, other: False)
    with writing(copy) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in copy.iterdir()] == ["new"]
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_file_system_that_cannot_sync_is_no_reason_to_lose_a_build(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.fsync", refused)
    with writing(copy) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in copy.iterdir()] == ["new"]


REPLACER = """
import sys
from pathlib import Path
from engines.bundle import writing
folder = Path(sys.argv[1])
for version in range(10**6):
    with writing(folder, lambda path: None) as new:
        for name in range(12):
            (new / str(name)).write_text(f"{version}" * 2000)
    print(version, flush=True)
"""


def test_killed_at_any_point_there_is_the_old_or_the_new_whole(tmp_path: Path) -> None:
    """SIGKILL, thirty times, at moments spread over a replacement; a reader meanwhile never finds nothing."""
    folder = tmp_path / "b"
    for round_ in range(30):
        command = [sys.executable, "-c", REPLACER, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        until = time.monotonic() + 0.002 * round_
        while time.monotonic() < until:
            assert folder.is_dir()
        process.kill()
        process.communicate()
        contents = {path.read_text() for path in folder.iterdir()}
        assert len(contents) == 1, round_
        assert len(list(folder.iterdir())) == 12
    assert all(path.name.startswith(".b.") for path in tmp_path.iterdir() if path != folder)  # never taken for a bundle


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(DeployError, match="left alone"), writing(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


def test_golden_is_read_without_pickle(copy: Path) -> None:
    import numpy as np

    np.savez(copy / GOLDEN, image=np.array([object()], dtype=object))
    with pytest.raises(DeployError, match="golden"):
        Golden.load((copy / GOLDEN).read_bytes())
