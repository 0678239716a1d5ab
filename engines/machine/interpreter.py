"""What the doctor has to know about this Python: where it looks for modules, and which it finds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MODULES = ("tensorrt", "pycuda")
_HERE = Path(__file__).parents[2]  # a checkout, or where packages are installed


@dataclass(frozen=True)
class Interpreter:
    """version: (3, 10).  venv: in a virtual environment; sees_system: which sees the system's packages.

    modules: those of MODULES that can be found.  wheels: parts of TensorRT that pip installed, with versions.
    nvcc: its path, when it is on PATH.  nvrtc: whether pip installed the compiler library.
    """

    version: tuple[int, int]
    venv: bool = False
    sees_system: bool = True
    modules: frozenset[str] = frozenset()
    wheels: tuple[tuple[str, str], ...] = ()
    nvcc: str = ""
    nvrtc: bool = False

    @property
    def name(self) -> str:
        return f"python{self.version[0]}.{self.version[1]}"


def this_interpreter() -> Interpreter:
    venv = sys.prefix != sys.base_prefix
    found = frozenset(name for name in MODULES if importlib.util.find_spec(name))
    named = _named(importlib.metadata.distributions())
    nvrtc = any(name.startswith("nvidia_cuda_nvrtc") for name in named)
    nvcc = shutil.which("nvcc") or ""
    return Interpreter(
        sys.version_info[:2],
        venv=venv,
        sees_system=_sees_system(venv),
        modules=found,
        wheels=_wheels(named),
        nvcc=nvcc,
        nvrtc=nvrtc,
    )


def pip_install(extra: str, pinned: bool = True) -> str:
    """The command that gets an optional part of this package; in a checkout, the one to run there.

    pinned: with the checkout's versions, which are not for Python 3.10.
    """
    if not (_HERE / "constraints.txt").exists():
        return f"pip install 'edgeseg[{extra}]'"
    pins = "-c constraints.txt " if pinned and sys.version_info >= (3, 11) else ""
    return f"pip install {pins}-e '.[{extra}]'"


def version_of(module: str) -> str:
    """Of the package that `module` is from, which may have another name: onnxruntime is also from onnxruntime-gpu."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(module)
        return importlib.metadata.version(names[0]) if names else "of unknown version"


def _sees_system(venv: bool) -> bool:
    if not venv:
        return True
    try:
        lines = (Path(sys.prefix) / "pyvenv.cfg").read_text().lower().splitlines()
    except OSError:
        return False
    return any(line.replace(" ", "") == "include-system-site-packages=true" for line in lines)


def _named(distributions: Iterable[importlib.metadata.Distribution]) -> dict[str, str]:
    return {(d.metadata["Name"] or "").replace("-", "_").lower(): d.version for d in distributions}


def _wheels(named: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """PyPI's TensorRT: `tensorrt` there is a shell around tensorrt_cu12 and others, which JetPack's package is not."""
    return tuple(sorted((name, version) for name, version in named.items() if name.startswith("tensorrt_cu")))
