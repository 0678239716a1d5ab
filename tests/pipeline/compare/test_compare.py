"""`deploy.py compare` from the command line, on a tiny model and a few rendered scenes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score

import deploy
from calib.data.scenes import render
from engines.backends.tensorrt.tensorrt_rtx import backend as compiler
from engines.bundle import MODEL, open_bundle
from engines.files import file_sha256
from engines.images.read import read_image
from engines.roofline.boards import BOARDS
from engines.roofline.floor import floor_on
from engines.segmenter import open_segmenter
from pipeline import exact
from pipeline.build import build_bundle
from pipeline.checkpoints import margins, sources
from pipeline.compare import run
from tests.pipeline.compare.read_back import read

pytestmark = pytest.mark.usefixtures("exports_once")
# One thread: the model is so small that more would only wait for each other.
TILING = ["--tile", "64x96", "--stride", "48x64", "--threads", "1"]
SIZES = {"a": (64, 96), "b": (90, 150), "c": (90, 150)}
CLASSES = 5  # of tests.models:tiny


def _compare(*words: object) -> int:
    return deploy.main(["compare", *map(str, words)])


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rendered scenes of two sizes, their nine classes folded to five; a corner of each is to be ignored."""
    root = tmp_path_factory.mktemp("scenes")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        scene = render(seed, *size)
        labels = scene.labels % CLASSES
        labels[:7, :9] = 255
        Image.fromarray(scene.image).save(root / "images" / f"{name}.png")
        Image.fromarray(labels).save(root / "labels" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def finished(exports_once: None, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of fp32, of a "fp16" that is made from other weights, and of int8, which has no calibration."""
    folder = tmp_path_factory.mktemp("compare") / "out"

    def build(request: Any, log: Any, exact: Any) -> Any:
        if request.precision == "fp16":
            return build_bundle(replace(request, precision="fp32", model="tests.models:other"), log)
        return build_bundle(request, log, exact)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "build_bundle", build)
        words = ("tests.models:tiny", "--data", tree, "-o", folder, *TILING, "--rounds", 2, "--backend", "openvino")
        assert _compare(*words, "--precisions", "fp32,fp16,int8") == 0
    return folder


def _labels(folder: Path, tree: Path) -> list[np.ndarray]:
    with open_segmenter(folder) as (segmenter, _):
        return [segmenter.segment(read_image(tree / "images" / f"{name}.png")).labels for name in SIZES]


def test_the_folder_holds_the_report_and_the_bundles(finished: Path) -> None:
    names = sorted(path.name for path in finished.iterdir())
    assert names == sorted(
        [*(f"compare.{kind}" for kind in ("json", "md", "png", "svg", "html")), "torch", "fp32", "fp16"]
    )
    for name in ("torch", "fp32", "fp16"):
        open_bundle(finished / name)
    assert [path.name for path in finished.parent.iterdir()] == ["out"]


def test_scores_and_agreement_are_those_of_the_bundles_themselves(finished: Path, tree: Path) -> None:
    """Against scikit-learn, on label maps made in this process."""
    body = json.loads((finished / "compare.json").read_text())
    reference = np.concatenate([labels.ravel() for labels in _labels(finished / "torch", tree)])
    truth = np.concatenate([np.asarray(Image.open(tree / "labels" / f"{name}.png")).ravel() for name in SIZES])
    scored = truth != 255
    for row in body["rows"][:3]:
        labels = np.concatenate([each.ravel() for each in _labels(finished / row["folder"], tree)])
        assert row["label_agreement"] == pytest.approx(accuracy_score(reference, labels), abs=1e-9)
        present = np.union1d(truth[scored], labels[scored])
        expected = jaccard_score(truth[scored], labels[scored], labels=present, average="macro")
        assert row["miou"] == pytest.approx(expected, abs=1e-9)
        assert row["pixel_accuracy"] == pytest.approx(accuracy_score(truth[scored], labels[scored]), abs=1e-9)
    assert body["rows"][1]["label_agreement"] > 0.999 > 0.9 > body["rows"][2]["label_agreement"]


def test_rows_say_what_ran_and_why_one_did_not(finished: Path) -> None:
    comparison = read(finished / "compare.json")
    base, fp32, other, int8 = comparison.rows
    assert (base.backend, base.reference, base.speedup) == ("torch", True, 1.0)
    assert base.executed == {"fp32": 1.0}
    assert fp32.executed == {"fp32": pytest.approx(1)}
    assert (fp32.backend, fp32.passed, int8.passed) == ("openvino", True, False)
    assert "--calib" in int8.reasons[0]
    assert not other.passed
    for row in (base, fp32, other):
        assert row.timing is not None
        assert row.frame_size == (90, 150)  # the commonest size
        assert row.windows == 4
        assert row.timing.frame.count == 2
        assert row.peak_bytes is not None
        assert row.manifest_sha256 == file_sha256(finished / row.folder / "manifest.json")
        assert row.bytes == (finished / row.folder / "engine.bin").stat().st_size
    assert base.peak_bytes is not None
    assert fp32.peak_bytes is not None
    assert base.peak_bytes > fp32.peak_bytes  # PyTorch is in one process and not in the other
    assert comparison.data["images"] == 3
    assert comparison.versions["torch"]
    assert comparison.ship == "fp32 openvino"


def test_rows_have_the_floor_of_their_graph_where_nvidias_compiler_is_installed(finished: Path) -> None:
    base, fp32, other, int8 = read(finished / "compare.json").rows
    assert int8.gpu_floor_ms == base.gpu_floor_ms == {}  # one was not built, the other is no candidate
    if compiler.cannot_plan() is not None:
        assert not any(row.gpu_floor_ms for row in (fp32, other))
        assert fp32.gpu_floor_note == compiler.cannot_plan()
        pytest.skip("tensorrt_rtx is not installed: no floor is found, and that is said")
    plan = compiler.kernel_plan(finished / fp32.folder / MODEL)
    for row in (fp32, other):
        assert set(row.gpu_floor_ms) == {board.name for board in BOARDS}
    for board in BOARDS:
        assert fp32.gpu_floor_ms[board.name] == pytest.approx(floor_on(board, plan).roofline)
    assert f"{len(plan.kernels)} kernels move" in fp32.gpu_floor_note
    assert "GPU ms >=" in (finished / "compare.md").read_text()


def test_the_page_shows_the_worst_images_of_the_row_that_differs(finished: Path) -> None:
    text = (finished / "compare.html").read_text()
    assert text.count('class="strip"') >= 3
    assert "No label differs" in text or text.count('class="strip"') > 3


def test_the_gate_of_a_pipeline(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tests.models:tiny", "--data", tree, *TILING, "--rounds", 1, "--limit", 1)
    assert _compare(*words, "--precisions", "fp32", "-o", tmp_path / "a", "--fail-under") == 0
    assert _compare(*words, "--precisions", "fp32,int8", "-o", tmp_path / "b", "--fail-under", "99") == 3
    out = capsys.readouterr().out
    assert "int8 openvino fails" in out
    assert re.search(r"fp32 openvino fails: mIoU [0-9.]+ %, required 99 %", out)
    assert (tmp_path / "b" / "compare.html").is_file()  # written all the same: it says why


def test_images_without_labels_are_judged_by_agreement(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tests.models:tiny", "--data", tree / "images", *TILING, "--rounds", 1, "--precisions", "fp32")
    assert _compare(*words, "-o", tmp_path / "out", "--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert [row["miou"] for row in body["rows"]] == [None, None]
    assert body["rows"][1]["passed"] is True
    assert body["limits"]["min_agreement"] == 0.99
    assert _compare(*words, "-o", tmp_path / "no", "--fail-under", "0.5") == 2
    assert "without labels" in _error(capsys)
    assert not (tmp_path / "no").exists()


def test_a_model_is_loaded_and_exported_once_for_all(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference, the ranges and every precision start from one verified graph."""
    done: list[str] = []
    places = ((margins, "load_source"), (sources.TorchSource, "export"), (exact, "simplify"), (exact, "apply_rules"))
    for place, name in places:
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, real=real, name=name: (done.append(name), real(*args))[1])
    photograph = tree / "images" / "a.png"
    words = ("tests.models:tiny", "--data", tree, "--calib", photograph, *TILING, "--rounds", 1, "--limit", 1)
    assert _compare(*words, "--precisions", "fp32,int8", "-o", tmp_path / "out") == 0  # a photograph is one, too
    assert done == ["load_source", "export", "simplify", "apply_rules"]
    rows = read(tmp_path / "out" / "compare.json").rows
    assert [row.folder for row in rows] == ["torch", "fp32", "int8"]
    graphs = [open_bundle(tmp_path / "out" / row.folder).manifest.verification[:3] for row in rows]
    assert graphs == [graphs[0]] * 3


def test_a_ready_onnx_is_compared_with_onnx_runtime(tree: Path, finished: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes((finished / "fp32" / "model.onnx").read_bytes())
    words = (model, "--data", tree, *TILING, "--rounds", 1, "--precisions", "fp32", "--limit", 1)
    assert _compare(*words, "-o", tmp_path / "out") == 0
    base, fp32 = read(tmp_path / "out" / "compare.json").rows
    assert base.name == "fp32 onnxruntime"
    assert fp32.agreement is not None
    assert fp32.agreement.labels > 0.999


def test_an_earlier_comparison_is_replaced_by_a_complete_one_only(
    tree: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    words = ("tests.models:tiny", "--data", tree, *TILING, "--rounds", 1, "--precisions", "fp32", "-o", out)
    assert _compare("tests.models:missing", *words[1:]) == 2
    assert "missing" in _error(capsys)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert _compare(*words) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["fp32", "torch"]
    (out / "notes.txt").write_text("mine")
    assert _compare(*words) == 2
    assert "notes.txt" in _error(capsys)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{tmp}/empty", "-o", "{tmp}/out"], "no images"),
        (["--data", "{tmp}/none", "-o", "{tmp}/out"], "nothing there"),
        (["--data", "{tmp}/strange", "-o", "{tmp}/out"], "stand for none of the 5 classes"),
        (["--data", "{tmp}/partly", "-o", "{tmp}/out"], "have no labels"),
        (["--data", "{tree}", "-o", "{tree}"], "not a comparison"),
        (["--data", "{tree}", "-o", "{tree}/images/a.png"], "not a comparison"),
        (["--data", "{tree}", "-o", "{tmp}/out", "--precisions", "fp32,fp4"], "fp4"),
        (["--data", "{tree}", "-o", "{tmp}/out", "--precisions", "fp32,fp32"], "each once"),
        (["--data", "{tree}", "-o", "{tmp}/out", "--label-map", "{tmp}/none.json"], "none.json"),
        (["--data", "{tree}", "-o", "{tmp}/out", "--precisions", "int8", "--calib", "{tmp}/empty"], "empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    words: list[str], message: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty", "strange/images", "strange/labels", "partly/images", "partly/labels"):
        (tmp_path / name).mkdir(parents=True)
    for k in range(2):
        for name in ("strange", "partly"):
            Image.new("RGB", (96, 64)).save(tmp_path / name / "images" / f"{k}.png")
    Image.new("L", (96, 64), 3).save(tmp_path / "partly" / "labels" / "0.png")
    for k in range(2):
        Image.new("L", (96, 64), 77).save(tmp_path / "strange" / "labels" / f"{k}.png")
    before = sorted(tmp_path.rglob("*"))
    filled = [word.format(tmp=tmp_path, tree=tree) for word in words]
    assert _compare("tests.models:tiny", *TILING, "--rounds", 1, *filled) == 2
    assert message in _error(capsys)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "option", ["--max-drop -1", "--max-drop nan", "--min-agreement 2", "--fail-under 101", "--rounds 0"]
)
def test_a_limit_that_can_be_no_limit_is_a_wrong_command_line(
    option: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        _compare("tests.models:tiny", "--data", tree, "-o", tmp_path / "out", *option.split())
    assert error.value.code == 2
    name, value = option.split()
    assert f"argument {name}: got {value}, expected" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
