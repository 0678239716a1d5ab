"""What two processes find out about one bundle at once: one of them is recorded, and the bundle is whole."""

from __future__ import annotations

import hashlib
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import engines.proof.record as module
from engines.bundle import KERNELS, Bundle, Manifest, open_bundle, runtime_cache_of
from engines.proof.record import record

NAME = runtime_cache_of("sdk 1.0", "a GPU")


def _proven(old: Manifest, content: bytes) -> Manifest:
    return replace(old, files={**old.files, NAME: hashlib.sha256(content).hexdigest()})


def test_of_two_processes_that_prove_at_once_one_is_recorded(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins when the first has looked at the manifest, and not written yet."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    old, said = open_bundle(copy).manifest, dict[bytes, str | None]()

    def prove(content: bytes) -> None:
        said[content] = record(copy, old, _proven(old, content), {NAME: content})

    second = threading.Thread(target=prove, args=(b"second",))

    def looked(folder: Path) -> Bundle:
        found = open_bundle(folder)
        if threading.current_thread() is not second:
            second.start()
            second.join(0.3)
        return found

    monkeypatch.setattr(module, "open_bundle", looked)
    prove(b"first")
    second.join()
    assert said == {b"first": None, b"second": "the bundle was replaced meanwhile"}
    assert open_bundle(copy).read(NAME) == b"first"
    open_bundle(copy).check()


def test_results_do_not_depend_on_what_a_device_compiled(tiny_bundle: Path) -> None:
    """Workers of one raster, and its --resume, go on where each has proven the engine on a GPU of its own."""
    old = open_bundle(tiny_bundle).manifest
    first, second = _proven(old, b"first"), _proven(old, b"second")
    second = replace(second, files={**second.files, KERNELS: "0" * 64})
    assert first.files != second.files
    assert first.results_from == second.results_from == old.results_from == old.files
