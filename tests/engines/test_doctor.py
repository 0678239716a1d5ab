"""The doctor as a whole, and what it finds where a GPU has memory of its own."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

from engines import doctor
from engines.backends import get_backend
from engines.errors import DeployError
from engines.machine import interpreter
from engines.machine.finding import Finding
from engines.machine.gpu import examine_gpu
from engines.machine.interpreter import Interpreter
from pipeline.figures.canvas import require_matplotlib

ROOT = Path(__file__).parents[2]
TREES = Path(__file__).parent / "machine" / "trees"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@host)  "
    "Tue Sep 23 09:55:41 UTC 2025\nGCC version:  gcc version 13.3.0\n"
)
OLD = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.103.01  Thu Jan  6 12:10:04 UTC 2022\n"
    "GCC version:  gcc version 4.8.5 20150623 (Red Hat 4.8.5-44) (GCC)\n"
)
READY = Interpreter((3, 11), modules=frozenset({"tensorrt", "pycuda"}), nvcc="/usr/local/cuda/bin/nvcc")


def test_the_doctor_examines_the_tree_that_it_is_given() -> None:
    findings = {finding.topic: finding for finding in doctor.examine(TREES / "orin-nano-super-jp6.2.1")}
    assert "JetPack 6.2.1" in findings["jetson"].detail
    assert findings["memory"].detail.startswith("0.8 GB free")
    assert all(finding.status in ("ok", "missing", "note") for finding in findings.values())
    assert set(findings["jetson"].to_json()) == {"topic", "status", "detail", "fix"}


def test_the_pinned_versions_are_not_asked_of_python_3_10(monkeypatch: pytest.MonkeyPatch) -> None:
    """JetPack 6 has 3.10, for which the pinned numpy and Pillow do not exist."""
    monkeypatch.setattr(doctor, "BUILD_PACKAGES", ("no_such_package",))
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 12))
    assert doctor.building().fix == "pip install -e '.[export]'"
    with monkeypatch.context() as context:
        context.setattr("importlib.util.find_spec", lambda *_: None)
        for name in ("openvino", "torch", "onnxruntime"):
            assert "; pip install -e '.[" in str(get_backend(name).unavailable())
        with pytest.raises(DeployError, match=r"; pip install -e '\.\[report\]'"):
            require_matplotlib()
    monkeypatch.setattr(doctor.sys, "version_info", (3, 12, 3))
    assert doctor.building().fix == "pip install -c constraints.txt -e '.[export]'"


def test_a_machine_without_an_nvidia_gpu_hears_nothing_of_it(tmp_path: Path) -> None:
    assert examine_gpu(Interpreter((3, 11)), tmp_path) == []


def test_a_workstation_that_is_ready(tmp_path: Path) -> None:
    findings = _examine(_workstation(tmp_path), READY)
    assert findings["gpu"].detail == "NVIDIA H100 80GB HBM3, driver 580.95.05"
    assert {finding.status for finding in findings.values()} == {"ok"}


def test_a_workstation_with_the_driver_alone(tmp_path: Path) -> None:
    findings = _examine(_workstation(tmp_path), Interpreter((3, 11)))
    assert findings["kernels"].status == "missing"
    assert findings["kernels"].fix == "pip install nvidia-cuda-nvrtc"  # that of CUDA 13
    assert "developer.nvidia.com/cuda-downloads" in findings["pycuda"].fix
    assert "apt-get" not in findings["pycuda"].fix  # whose toolkit knows no new GPU
    assert findings["tensorrt"].fix == "pip install tensorrt-cu13"


def test_a_toolkit_that_is_not_on_path(tmp_path: Path) -> None:
    root = _workstation(tmp_path)
    nvcc = root / "usr/local/cuda-13.0/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch()
    assert _examine(root, Interpreter((3, 11)))["kernels"].fix == "export PATH=/usr/local/cuda-13.0/bin:$PATH"
    nvcc.unlink()
    library = root / "usr/lib/x86_64-linux-gnu/libnvrtc.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    assert "NVRTC" in _examine(root, Interpreter((3, 11)))["kernels"].detail


def test_an_old_driver_and_no_tools(tmp_path: Path) -> None:
    root = _workstation(tmp_path, OLD)
    (root / "usr/bin/nvidia-smi").unlink()
    findings = _examine(root, READY)
    assert findings["gpu"].status == "missing"
    assert "driver 470.103.01: CUDA 12 wants 525" in findings["gpu"].detail
    assert "compute,utility" in findings["nvidia-smi"].fix


def test_pips_tensorrt_must_fit_the_driver(tmp_path: Path) -> None:
    wheels = (("tensorrt_cu13", "11.4.0.106"), ("tensorrt_cu13_libs", "11.4.0.106"))
    python = Interpreter((3, 11), modules=READY.modules, wheels=wheels)
    assert "tensorrt" not in _examine(_workstation(tmp_path / "new"), python)
    root = _workstation(tmp_path / "old", OPEN.replace("580.95.05", "570.133.20"))
    findings = _examine(root, python)
    assert findings["tensorrt"].status == "missing"
    assert "CUDA 13, which wants driver 580 or newer, this is 570.133.20" in findings["tensorrt"].detail
    assert findings["tensorrt"].fix == (
        "pip uninstall -y tensorrt tensorrt_cu13 tensorrt_cu13_libs && pip install tensorrt-cu12"
    )
    assert findings["kernels"].fix == "pip install nvidia-cuda-nvrtc-cu12"
    assert "tensorrt" not in _examine(root, READY)


def test_onnxruntime_has_a_version_whichever_package_it_is_from(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.23.4" if name == "onnxruntime-gpu" else original(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert get_backend("onnxruntime").version() == "onnxruntime 1.23.4"
    monkeypatch.setattr(doctor, "BUILD_PACKAGES", ("onnxruntime",))
    assert doctor.building().detail == "onnxruntime 1.23.4"


def test_a_container_that_was_not_given_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(OPEN)
    assert "--gpus all" in _examine(tmp_path, READY)["gpu"].fix


def test_a_card_without_a_driver(tmp_path: Path) -> None:
    card = tmp_path / "sys/bus/pci/devices/0000:2f:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x040300\n")  # its sound device alone is no GPU
    assert examine_gpu(READY, tmp_path) == []
    (card / "class").write_text("0x030200\n")
    assert "ubuntu-drivers install" in _examine(tmp_path, READY)["gpu"].fix


def test_this_interpreter_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter.sys, "prefix", str(tmp_path))
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    assert (interpreter.this_interpreter().venv, interpreter.this_interpreter().sees_system) == (True, False)
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    assert interpreter.this_interpreter().sees_system


def test_pypis_tensorrt_is_told_from_jetpacks(tmp_path: Path) -> None:
    for name in ("tensorrt", "tensorrt_cu12", "tensorrt-cu12-libs"):
        folder = tmp_path / f"{name}-11.4.0.106.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 11.4.0.106\n")
    found = interpreter._wheels(interpreter._named(importlib.metadata.distributions(path=[str(tmp_path)])))
    assert found == (("tensorrt_cu12", "11.4.0.106"), ("tensorrt_cu12_libs", "11.4.0.106"))


def _workstation(root: Path, version: str = OPEN) -> Path:
    card = root / "proc/driver/nvidia/gpus/0000:2f:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 214\n")
    (root / "proc/driver/nvidia/version").write_text(version)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/nvidia-smi").touch()
    return root


def _examine(root: Path, python: Interpreter) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine_gpu(python, root)}


def test_a_backend_for_gpus_is_missing_only_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_backend("tensorrt"), "unavailable", lambda: "the tensorrt package is not installed; get it")

    def status() -> str:
        return next(finding.status for finding in doctor.examine(tmp_path) if finding.topic == "backend tensorrt")

    assert status() == "note"
    driver = tmp_path / "proc/driver/nvidia"
    driver.mkdir(parents=True)
    (driver / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\n")
    assert status() == "missing"


def test_what_building_imports_is_what_the_extra_installs_and_the_doctor_looks_for() -> None:
    """Every package that pipeline/ imports, and OpenVINO, with which it measures ranges."""
    rooms = [path for path in (ROOT / "pipeline").rglob("*.py") if "demo" not in path.parts]
    imported = {"openvino"}
    for node in (node for path in rooms for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    imported -= {*sys.stdlib_module_names, "pipeline", "calib", "engines"}
    imported -= {"matplotlib", "google"}  # of the extra `report`; protobuf, which onnx brings along
    imported -= {
        "transformers",
        "huggingface_hub",
        "segmentation_models_pytorch",
    }  # of extras for folders that need them
    text = (ROOT / "pyproject.toml").read_text()
    packed = {
        re.split("[><=]", name)[0].replace("-", "_")
        for names in re.findall(r"^(?:dependencies|export) = (\[.+\])$", text, re.M)
        for name in ast.literal_eval(names)
    }
    assert imported <= packed, imported - packed
    assert imported - {"numpy", "tqdm"} <= set(doctor.BUILD_PACKAGES)
    assert set(doctor.BUILD_PACKAGES) <= packed
