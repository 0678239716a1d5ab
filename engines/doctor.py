"""`deploy.py doctor`: what this machine can run, what is missing, and the command that gets it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from pathlib import Path

import numpy as np

from engines.backends import BACKENDS, get_backend
from engines.contract import PRECISIONS
from engines.errors import DeployError
from engines.images.videos import readable
from engines.machine.finding import Finding
from engines.machine.gpu import examine_gpu
from engines.machine.interpreter import pip_install, this_interpreter, version_of
from engines.machine.jetson import read_jetson
from engines.machine.jetson_advice import examine_jetson
from engines.machine.limits import available_memory, cores
from engines.machine.sysfs import ROOT, cpu_name
from engines.tiling import core

# OpenVINO among them: it measures the ranges of FP16, BF16 and INT8, whatever the backend.
BUILD_PACKAGES = (
    "torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime", "ml_dtypes", "safetensors", "openvino",
)  # fmt: skip


def examine(root: Path = ROOT) -> list[Finding]:
    """root: the folder that holds the machine's proc, sys, etc and usr."""
    gpu = _gpu(root)
    backends = [_backend(name, bool(gpu)) for name in BACKENDS]
    return [_machine(), _memory(root), _python(), _core(), *backends, building(), _videos(), _compiler(), *gpu]


def _machine() -> Finding:
    return Finding("machine", "ok", f"{platform.machine()}, {cpu_name()}, {cores()} core(s), {platform.system()}")


def _memory(root: Path) -> Finding:
    free = available_memory(root)
    if free is None:
        return Finding("memory", "note", f"unknown: {root / 'proc/meminfo'} does not say what is available")
    available = free / 1e9
    # A SegFormer-B0 window of 1024x1024 peaks below 1 GB; building holds torch, ONNX Runtime and the engine at once.
    if available < 2:
        return Finding("memory", "missing", f"{available:.1f} GB free, 2 GB wanted", "close programs, or add swap")
    return Finding("memory", "ok", f"{available:.1f} GB free")


def _python() -> Finding:
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "pillow", "tqdm"))
    return Finding("python", "ok", f"{platform.python_version()}, {packages}")


def _core() -> Finding:
    """The C library is present and computes: one pixel, one class, one window."""
    try:
        pixel = core.gather(np.full((1, 1, 3), 7, np.uint8), 0, 0, (1, 1), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    except DeployError as error:
        return Finding(
            "tiling core", "missing", str(error), f"{sys.executable} -m pip install -e . (needs a C compiler)"
        )
    if not np.array_equal(pixel, np.full((3, 1, 1), 7, np.float32)):
        return Finding("tiling core", "missing", f"computes {pixel.ravel()} instead of 7", "pip install -e . again")
    return Finding("tiling core", "ok", f"C library loaded, {core.build_info()}")


def _backend(name: str, gpu_here: bool) -> Finding:
    """What needs a GPU is not missing where there is no sign of one."""
    backend = get_backend(name)
    reason = backend.unavailable()
    topic = f"backend {name}"
    if reason:
        detail, _, fix = reason.partition("; ")
        return Finding(topic, "note" if backend.on_gpu and not gpu_here else "missing", detail, fix)
    precisions = [p for p in PRECISIONS if backend.supports(p) is None]
    return Finding(topic, "ok", f"{backend.version()} on {backend.device()}: {', '.join(precisions)}")


def require_building() -> None:
    """Raises DeployError naming the packages that building lacks, and the command that gets them."""
    finding = building()
    if finding.status != "ok":
        raise DeployError(f"{finding.detail}; {finding.fix}")


def building() -> Finding:
    """Whether everything is there that turns a model into a bundle."""
    absent = [name for name in BUILD_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        detail = f"{', '.join(absent)} not installed: bundles can be run and rebuilt here, not built from a checkpoint"
        return Finding("building", "note", detail, pip_install("export"))
    versions = ", ".join(f"{name} {version_of(name)}" for name in BUILD_PACKAGES)
    return Finding("building", "ok", versions)


def _videos() -> Finding:
    """PyAV is never missing: most take images alone."""
    if not readable():
        return Finding("videos", "note", "PyAV not installed: `run` takes images alone", pip_install("video"))
    return Finding("videos", "ok", f"PyAV {version_of('av')}")


def _compiler() -> Finding:
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if found is None:
        return Finding("C compiler", "note", "none found; needed only to install from source", "apt-get install gcc")
    return Finding("C compiler", "ok", str(shutil.which(found)))


def _gpu(root: Path) -> list[Finding]:
    jetson, python = read_jetson(root), this_interpreter()
    return examine_gpu(python, root) if jetson is None else examine_jetson(jetson, python, root)
