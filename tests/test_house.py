"""The rules of the house: which room may import which, who may touch an SDK, and how long a file may grow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.without import deploy_without

ROOT = Path(__file__).parent.parent
ROOMS = ("pipeline", "calib", "engines")  # each may import itself and those to its right
SDK_OWNER = {
    "openvino": "engines/backends/openvino/openvino.py",
    "PIL": "engines/images/read.py engines/images/write.py engines/images/shared_pixels.py",
    "matplotlib": "pipeline/compare/report/figure.py",
    "tensorrt": "engines/backends/tensorrt/tensorrt.py",
    "tensorrt_rtx": "engines/backends/tensorrt/tensorrt_rtx.py",
    "pycuda": "engines/gpu/context.py",
}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
LINE_BUDGET = 330


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


def _top_level_imports(path: Path) -> set[str]:
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        name
        for node in nodes
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrow(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    forbidden = {"deploy", "tests", "benchmarks", *ROOMS[: ROOMS.index(room)]}
    assert not {name.split(".")[0] for name in _imports(path)} & forbidden


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sdks_stay_in_their_file(path: Path) -> None:
    here = str(path.relative_to(ROOT))
    used = {name.split(".")[0] for name in _imports(path)}
    for sdk, owners in SDK_OWNER.items():
        assert sdk not in used or here in owners.split(), f"{here} imports {sdk}, which belongs to {owners or 'nobody'}"
    if here.startswith(("engines/", "calib/")):
        heavy = used & {"torch", "onnx", "onnxruntime", "onnxsim", "safetensors", "transformers"}
        owned = {
            "engines/backends/torch_cpu.py": {"torch"}, "engines/backends/torch_gpu.py": {"torch"},
            "engines/backends/onnxruntime.py": {"onnxruntime"},
        }  # fmt: skip
        assert heavy <= owned.get(here, set())


@pytest.mark.parametrize("path", sorted((ROOT / "engines").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_sdks_are_imported_lazily(path: Path) -> None:
    top = {module.split(".")[0] for module in _top_level_imports(path)}
    assert not top & {"openvino", "torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda"}


@pytest.mark.parametrize("path", [*FILES, ROOT / "deploy.py"], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINE_BUDGET


def test_run_imports_neither_torch_nor_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    """`run` on a machine without torch and onnx: importing either raises, and the masks are still written."""
    from PIL import Image

    Image.new("RGB", (200, 100), (90, 120, 30)).save(tmp_path / "a.jpg")
    argv = ["run", str(tiny_bundle), str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), "--overlay", "--confidence"]
    done = deploy_without({"torch", "onnx", "onnxruntime", "pipeline", "calib"}, argv)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.confidence.png", "a.overlay.jpg", "a.png"]
