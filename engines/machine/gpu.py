"""What the doctor finds where an NVIDIA GPU of its own memory is, or should be."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.machine.finding import Finding
from engines.machine.interpreter import Interpreter
from engines.machine.sysfs import ROOT, glob, text

NVIDIA, DISPLAY = "0x10de", "0x03"  # PCI vendor; class of VGA and 3D controllers
OLDEST_DRIVER = 525  # the first for CUDA 12; CUDA 13 wants 580 (CUDA release notes, table of minimum drivers)
CUDA_13_DRIVER = 580
TOOLKIT = "install NVIDIA's CUDA toolkit (https://developer.nvidia.com/cuda-downloads: Ubuntu's own is too old)"


def examine_gpu(python: Interpreter, root: Path) -> list[Finding]:
    """Nothing where there is no sign of such a GPU."""
    version = text(root / "proc/driver/nvidia/version")
    if version is None:
        return list(_without_driver(root))
    return [_driver(version, root), *_tools(root), *_kernels(python, root, version), *_modules(python, version)]


def _without_driver(root: Path) -> Iterator[Finding]:
    for card in glob(root, "sys/bus/pci/devices/*"):
        if text(card / "vendor") == NVIDIA and (text(card / "class") or "").startswith(DISPLAY):
            yield Finding("gpu", "missing", f"an NVIDIA GPU at {card.name}, but no driver",
                          "sudo ubuntu-drivers install && sudo reboot")  # fmt: skip
            return


def _driver(version: str, root: Path) -> Finding:
    cards = [text(path) or "" for path in glob(root, "proc/driver/nvidia/gpus/*/information")]
    names = [found[1].strip() for found in (re.search(r"^Model:\s*(.+)$", card, re.M) for card in cards) if found]
    number = _number(version)
    detail = f"{', '.join(names) or 'NVIDIA GPU'}, driver {number or 'unknown'}"
    if number and int(number.split(".")[0]) < OLDEST_DRIVER:
        return Finding("gpu", "missing", f"{detail}: CUDA 12 wants {OLDEST_DRIVER} or newer",
                       "sudo ubuntu-drivers install && sudo reboot")  # fmt: skip
    if not names and not glob(root, "dev/nvidia[0-9]*"):
        return Finding("gpu", "missing", f"driver {number}, but no GPU here (a container without it?)",
                       "start it with: docker run --gpus all ...")  # fmt: skip
    return Finding("gpu", "ok", detail)


def _number(version: str) -> str:
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", version)
    return found[1] if found else ""


def _tools(root: Path) -> Iterator[Finding]:
    on_path = root == ROOT and shutil.which("nvidia-smi")
    if not on_path and not (root / "usr/bin/nvidia-smi").exists():
        yield Finding("nvidia-smi", "note", "not there; bench reads power and clocks through its library, libnvidia-ml",
                      "install nvidia-utils of the driver's version; in a container: "
                      "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ...")  # fmt: skip


def _kernels(python: Interpreter, root: Path, version: str) -> Iterator[Finding]:
    """nvcc, or NVRTC, its library: either compiles the kernels that a bundle for this GPU carries."""
    nvcc = python.nvcc or next((str(path) for path in glob(root, "usr/local/cuda*/bin/nvcc")), "")
    places = ("usr/local/cuda*/lib64", "usr/local/cuda*/targets/*/lib", "usr/lib/*-linux-gnu")
    nvrtc = [path for place in places for path in glob(root, f"{place}/libnvrtc.so*")]
    if python.nvcc:
        yield Finding("kernels", "ok", f"compiled by {nvcc}")
    elif nvcc:
        folder = str(Path("/") / Path(nvcc).relative_to(root).parent)
        yield Finding("kernels", "note", f"nvcc is installed, but not on PATH{': NVRTC serves' if nvrtc else ''}",
                      f"export PATH={folder}:$PATH")  # fmt: skip
    elif nvrtc or python.nvrtc:
        yield Finding("kernels", "ok", "compiled by NVRTC; no nvcc, which installing pycuda needs")
    else:
        yield Finding("kernels", "missing", "neither nvcc nor NVRTC: no bundle for this GPU can be built",
                      f"pip install nvidia-cuda-nvrtc{'' if _takes_13(version) else '-cu12'}")  # fmt: skip


def _modules(python: Interpreter, version: str) -> Iterator[Finding]:
    if "pycuda" not in python.modules:
        need = "" if python.nvcc else f"{TOOLKIT}, then "
        yield Finding("pycuda", "missing", "not installed; it is compiled here, with nvcc and Python's headers",
                      f"{need}pip install pycuda")  # fmt: skip
    new = _takes_13(version)
    if "tensorrt" not in python.modules:
        yield Finding("tensorrt", "missing", "not installed", f"pip install tensorrt-cu{13 if new else 12}")
    elif not new and any(name.startswith("tensorrt_cu13") for name, _ in python.wheels):
        names = " ".join(name for name, _ in python.wheels)
        yield Finding("tensorrt", "missing",
                      f"pip's is for CUDA 13, which wants driver {CUDA_13_DRIVER} or newer, this is {_number(version)}",
                      f"pip uninstall -y tensorrt {names} && pip install tensorrt-cu12")  # fmt: skip


def _takes_13(version: str) -> bool:
    """Whether the driver, if its number is known, serves CUDA 13."""
    number = _number(version)
    return not number or int(number.split(".")[0]) >= CUDA_13_DRIVER
