"""The rules of the house: which room may import which, who may touch an SDK, and how long a file may grow."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests.without import deploy_without

ROOT = Path(__file__).parent.parent
# From the ground up: a room imports itself and those before it, never one after it.  A room is a folder, or a file that
# stands in the open.
FLOORS = (
    "engines/errors.py", "engines/guard", "engines/files.py", "engines/records.py", "engines/machine",
    "engines/spec.py", "engines/contract.py",
    "engines/roofline", "engines/tiling", "engines/images", "engines/views", "engines/gpu", "engines/stream",
    "engines/bundle.py", "engines/backends", "engines/arguments", "engines/segmenter.py", "engines/proof",
    "engines/rasters", "engines/video", "engines/report", "engines/folder_run.py", "engines/serving", "engines/fleet",
    "engines/measure",
    "engines/plan", "engines/doctor.py",
    "calib/data", "calib/ranges",
    "pipeline/models", "pipeline/graph", "pipeline/checkpoints", "pipeline/request.py", "pipeline/provenance.py",
    "pipeline/evaluation",
    "pipeline/side_by_side.py", "pipeline/precision", "pipeline/exact.py", "pipeline/build.py", "pipeline/figures",
    "pipeline/receptive", "pipeline/compare",
    "pipeline/inspect_model.py", "pipeline/demo", "pipeline/asked.py",
    "deploy.py",
)  # fmt: skip
HOUSES = ("engines", "calib", "pipeline")
# Who may import a package at all.  A vendor's SDK is its wrapper's; graphs are onnx_ir's, and onnx itself stands at the
# edges, where files, other libraries and the definitions of operators are.
SDK_OWNER = {
    "openvino": "engines/backends/openvino/openvino.py",
    "onnxruntime": "engines/backends/onnxruntime.py pipeline/graph/onnx_graph.py",
    "tensorrt": "engines/backends/tensorrt/tensorrt.py",
    "tensorrt_rtx": "engines/backends/tensorrt/tensorrt_rtx.py",
    "pycuda": "engines/gpu/found.py",
    "PIL": "engines/images/read.py engines/images/resize.py engines/images/write.py engines/images/shared_pixels.py"
    " engines/images/pillow.py",
    "onnx": "pipeline/graph/export.py pipeline/graph/proto.py pipeline/graph/types.py pipeline/graph/batches/walk.py",
    "onnxsim": "pipeline/graph/export.py",
    "segmentation_models_pytorch": "pipeline/checkpoints/families/smp.py",
    "transformers": "pipeline/checkpoints/families/common.py",
    "tifffile": "engines/images/tiff.py",
    "rasterio": "engines/rasters/gdal.py engines/rasters/gdal_write.py",
    "pyogrio": "engines/rasters/polygons.py",
    "av": "engines/video/av_read.py engines/video/av_write.py engines/video/sound.py engines/video/arrivals.py",
    "gi": "engines/video/gstreamer.py",
    "triton_python_backend_utils": "engines/serving/triton.py",
    "ray": "engines/fleet/ray.py",
    "pillow_heif": "engines/images/pillow.py",
    "matplotlib": "pipeline/figures/canvas.py pipeline/compare/report/figure.py pipeline/compare/models/figure.py "
    "pipeline/receptive/figure.py pipeline/figures/points.py",
}
ON_A_DEVICE = ("engines", "calib")  # torch and onnx are no part of a device
TORCH_THERE = ("engines/backends/torch_cpu.py", "engines/backends/torch_gpu.py")
FILES = [path for house in HOUSES for path in sorted((ROOT / house).rglob("*.py"))] + [ROOT / "deploy.py"]
LINE_BUDGET = 330
IN_THE_OPEN = {"engines": 11, "calib": 1, "pipeline": 8}  # Python files outside of a folder, `__init__` counted


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _modules() -> dict[str, Path]:
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


@cache
def _imports(path: Path, everywhere: bool = True) -> frozenset[str]:
    """Every module that a file names in an import; of ``from package import module`` the module.

    everywhere: also inside functions and under TYPE_CHECKING.
    """
    tree = _tree(path)
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in _modules() else node.module for name in inner}
    return frozenset(names)


def _packages(path: Path, everywhere: bool = True) -> set[str]:
    return {name.split(".")[0] for name in _imports(path, everywhere)}


def _room(path: Path) -> str:
    """The longest name of a floor that the file is, or lies below; a house's own ``__init__`` has none."""
    here = _name(path)
    return next((floor for floor in FLOORS if here == floor or here.startswith(f"{floor}/")), "")


every_file = pytest.mark.parametrize("path", FILES, ids=_name)


def test_every_file_is_in_a_room_and_every_room_is_there() -> None:
    nowhere = [_name(path) for path in FILES if not _room(path) and path.name != "__init__.py"]
    assert not nowhere, f"give {nowhere} a room in FLOORS"
    assert {_room(path) for path in FILES} - {""} == set(FLOORS)


@every_file
def test_imports_follow_the_arrow(path: Path) -> None:
    here = _room(path)
    for name in _imports(path):
        target = _modules().get(name)
        if target is not None and _room(target) and here:
            assert FLOORS.index(_room(target)) <= FLOORS.index(here), f"{_name(path)} imports {name}, from above"
    assert not _packages(path) & {"tests", "benchmarks", *({"deploy"} if path.name != "deploy.py" else ())}


def test_imports_run_in_no_circle() -> None:
    """Circles of any length, also those that only a type checker sees."""
    arrows = {path: {_modules()[name] for name in _imports(path) if name in _modules()} - {path} for path in FILES}
    while ends := [path for path, targets in arrows.items() if not targets & arrows.keys()]:
        for path in ends:
            del arrows[path]
    assert not arrows, f"in or above a circle: {sorted(map(_name, arrows))}"


@pytest.mark.parametrize("house", HOUSES)
def test_few_files_stand_in_the_open(house: str) -> None:
    assert len(list((ROOT / house).glob("*.py"))) <= IN_THE_OPEN[house]


def test_one_name_is_one_thing() -> None:
    """No two public classes share a name."""
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_name(path))
    assert not {name: files for name, files in places.items() if len(files) > 1}


@every_file
def test_long_constructors_are_called_by_name(path: Path) -> None:
    """No record is built from more than four arguments without saying which is which."""
    own = {node.name for file in FILES for node in ast.walk(_tree(file)) if isinstance(node, ast.ClassDef)}
    calls = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    assert not [call.lineno for call in calls if call.func.id in own and len(call.args) > 4]  # type: ignore[attr-defined]


@every_file
def test_sdks_stay_in_their_file(path: Path) -> None:
    here, used = _name(path), _packages(path)
    for sdk, owners in SDK_OWNER.items():
        assert sdk not in used or here in owners.split(), f"{here} imports {sdk}, which belongs to {owners}"
    if here.startswith(ON_A_DEVICE):
        heavy = used & {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors", "transformers"}
        assert heavy <= ({"torch"} if here in TORCH_THERE else set())


@pytest.mark.parametrize("path", sorted((ROOT / "engines").rglob("*.py")), ids=_name)
def test_sdks_are_imported_lazily(path: Path) -> None:
    assert not _packages(path, everywhere=False) & {*SDK_OWNER, "torch"} - {"PIL"}


@every_file
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINE_BUDGET


@every_file
def test_every_temporary_file_is_in_the_ledger(path: Path) -> None:
    """So that the parent removes it when a library crashes; those two make theirs inside of a folder that is."""
    own = ("engines/guard/ledger.py", "engines/bundle.py", "engines/backends/onnx_bytes.py", "engines/gpu/compile.py")
    assert "tempfile" not in _packages(path) or _name(path) in own


def test_run_imports_neither_torch_nor_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    """`run` on a machine without torch and onnx: importing either raises, and the masks are still written."""
    from PIL import Image

    Image.new("RGB", (200, 100), (90, 120, 30)).save(tmp_path / "a.jpg")
    argv = ["run", str(tiny_bundle), str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), "--overlay", "--confidence"]
    done = deploy_without({"torch", "onnx", "onnxruntime", "pipeline", "calib"}, argv)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.confidence.png", "a.overlay.jpg", "a.png"]
