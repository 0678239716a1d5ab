"""The command line as a user meets it: exit codes, one-line errors, files on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploy
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("exports_once")


def _run(*argv: object) -> int:
    return deploy.main([str(word) for word in argv])


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a user sees."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (120, 200)), ("b.png", (64, 96)), ("c.webp", (33, 35))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    return folder


def test_build_and_run_from_the_command_line(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    assert _run("build-engine", "tests.models:tiny", "-o", bundle, "--tile", "64x96", "--stride", "48x64") == 0
    text = capsys.readouterr().out
    assert "labels equal to the checkpoint in PyTorch" in text
    assert _run("run", bundle, photos, "-o", out, "--overlay", "--confidence") == 0
    assert "3 image(s)" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stem}{suffix}" for stem in "abc" for suffix in (".png", ".overlay.jpg", ".confidence.png")
    )
    with Image.open(out / "a.png") as mask:
        assert (mask.mode, mask.size) == ("P", (200, 120))
        assert np.asarray(mask).max() < 5


def test_a_name_in_another_encoding_is_reported(tiny_bundle: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(b"no image")
    command = [sys.executable, "deploy.py", "run", tiny_bundle, name, "-o", tmp_path / "out"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("skipped ")


def test_run_reports_as_json(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", tiny_bundle, photos / "*.png", photos / "a.jpg", "-o", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(image["input"]).name for image in report["images"]] == ["b.png", "a.jpg"]
    first = report["images"][0]
    assert (first["width"], first["height"], first["windows"]) == (96, 64, 1)
    assert sum(first["classes"].values()) == pytest.approx(1, abs=1e-4)
    assert first["total_ms"] >= first["engine_ms"] > 0


def test_unreadable_images_are_reported_at_the_end_and_the_rest_is_done(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (photos / "a.jpg").read_bytes()
    (photos / "broken.jpg").write_bytes(data[: len(data) // 2])
    (photos / "empty.png").write_bytes(b"")
    assert _run("run", tiny_bundle, photos, "-o", tmp_path / "out") == 2
    text = capsys.readouterr().out
    assert "3 image(s)" in text
    assert "broken.jpg" in text
    assert "empty.png" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]


def test_folders_within_folders_are_mirrored_and_earlier_masks_left_out(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("day/a.jpg", "night/a.jpg"):
        (photos / place).parent.mkdir()
        shutil.copyfile(photos / "a.jpg", photos / place)
    for _ in range(2):  # the second time the masks of the first lie among the images
        assert _run("run", tiny_bundle, photos, "-o", photos / "masks", "--recursive", "--overlay") == 0
        assert "5 image(s)" in capsys.readouterr().out
    written = {path.relative_to(photos / "masks") for path in (photos / "masks").rglob("*") if path.is_file()}
    stems = ("a", "b", "c", "day/a", "night/a")
    assert written == {Path(stem + suffix) for stem in stems for suffix in (".png", ".overlay.jpg")}


def test_masks_of_the_command_line_equal_those_of_the_library(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    from engines.images.read import read_image
    from engines.segmenter import open_segmenter

    _run("run", tiny_bundle, photos, "-o", tmp_path / "out")
    with open_segmenter(tiny_bundle) as (segmenter, _):
        for name in ("a.jpg", "b.png"):
            labels = segmenter.segment(read_image(photos / name)).labels
            with Image.open(tmp_path / "out" / f"{name[0]}.png") as mask:
                assert np.array_equal(np.asarray(mask), labels)


@pytest.fixture
def labelled(photos: Path, tmp_path: Path) -> Path:
    """The photos with labels 0..4, and one label to ignore."""
    root = tmp_path / "set"
    (root / "labels").mkdir(parents=True)
    photos.rename(root / "images")
    rng = np.random.default_rng(1)
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            labels = rng.integers(0, 5, image.size[::-1], np.uint8)
        labels[0, 0] = 255
        Image.fromarray(labels).save(root / "labels" / f"{path.stem}.png")
    return root


def test_evaluate_prints_a_table_or_json_and_writes_it(
    tiny_bundle: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("evaluate", tiny_bundle, labelled, "-o", tmp_path / "out") == 0
    text = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert "3 image(s); labels class numbers from 0" in text
    assert f"pixel accuracy {100 * written['aacc']:.2f} %" in text
    assert _run("evaluate", tiny_bundle, labelled, "--json", "--limit", 2, "--threads", 1) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["dataset"]["images"] == 2
    assert [each["name"] for each in printed["classes"]] == [f"class_{index}" for index in range(5)]


def test_evaluate_below_the_limit_is_exit_3_with_its_result_written(
    tiny_bundle: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("evaluate", tiny_bundle, labelled, "-o", tmp_path / "out", "--fail-under", "0.9") == 3
    assert "expected at least 90 % (--fail-under)" in _error(capsys)
    assert json.loads((tmp_path / "out" / "evaluate.json").read_text())["miou"] < 0.9
    assert _run("evaluate", tiny_bundle, labelled, "--fail-under", "90") == 3
    assert _run("evaluate", tiny_bundle, labelled, "--fail-under", "0.001") == 0
    for value in ("-1", "101", "nan"):
        with pytest.raises(SystemExit) as error:
            _run("evaluate", tiny_bundle, labelled, "--fail-under", value)
        assert error.value.code == 2


def _spoil_size(root: Path) -> None:
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(root / "labels" / "b.png")


def _spoil_ids(root: Path) -> None:
    Image.fromarray(np.full((64, 96), 9, np.uint8)).save(root / "labels" / "b.png")


def _spoil_image(root: Path) -> None:
    data = (root / "images" / "a.jpg").read_bytes()
    (root / "images" / "a.jpg").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda root: (root / "labels" / "c.png").unlink(), [], "1 of 3 images have no labels"),
        (lambda root: shutil.rmtree(root / "labels"), [], "3 of 3 images have no labels"),
        (lambda root: shutil.rmtree(root), [], "nothing there"),
        (lambda root: (root / "labels" / "a.png").write_bytes(b""), [], "a.png: an empty file"),
        (_spoil_size, [], "b.png: got 10x10, expected 96x64"),
        (_spoil_ids, [], "b.png: got 9, which stand for none of the 5 classes"),
        (_spoil_image, [], "a.jpg: damaged"),
        (lambda root: None, ["--split", "test", "--ignore-label", 4, "--label-map", "none"], "label map none"),
        (lambda root: None, ["--label-map", "cityscapes_to_camvid"], "expected a class of the model"),
        (lambda root: None, [word for k in range(5) for word in ("--ignore-label", k)], "no labelled pixel"),
        (lambda root: None, ["-o", "{root}/images/a.jpg"], "cannot be created"),
        (lambda root: None, ["--max-pixels", 10000], "more than 10000 pixels"),
    ],
)
def test_evaluate_refuses_what_it_cannot_score(  # type: ignore[no-untyped-def]
    spoil, options: list[object], message: str, tiny_bundle: Path, labelled: Path, tmp_path: Path, capsys
) -> None:
    spoil(labelled)
    words = [str(word).format(root=labelled) for word in options]
    assert _run("evaluate", tiny_bundle, labelled, *([] if "-o" in words else ["-o", tmp_path / "out"]), *words) == 2
    assert message in _error(capsys)
    assert not list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else [])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "{bundle}", "nothing.jpg", "-o", "{tmp}/out"], "nothing.jpg"),
        (["run", "{bundle}", "{tmp}/empty", "-o", "{tmp}/out"], "empty"),
        (["run", "{tmp}/empty", "{photos}", "-o", "{tmp}/out"], "expected a folder made by build-engine"),
        (["run", "{bundle}", "{photos}", "-o", "{photos}/a.jpg"], "a.jpg"),
        (["run", "{bundle}", "{photos}", "-o", "{photos}"], "b.png"),
        (["build-engine", "tests.models:missing", "-o", "{tmp}/b"], "missing"),
        (["build-engine", "no_such_module:f", "-o", "{tmp}/b"], "no_such_module"),
        (["build-engine", "{tmp}/none.pth", "-o", "{tmp}/b"], "none.pth"),
        (["build-engine", "{tmp}/none.onnx", "-o", "{tmp}/b"], "none.onnx"),
        (["build-engine", "{tmp}/empty", "-o", "{tmp}/b"], "empty"),
        (["build-engine", "tests.models:tiny", "-o", "{photos}"], "left alone"),
        (["build-engine", "tests.models:tiny", "-o", "{tmp}/b", "--classes", "mars"], "mars"),
        (["build-engine", "tests.models:tiny", "-o", "{tmp}/b", "--sample", "{tmp}/none.jpg"], "none.jpg"),
        (["build-engine", "tests.models:tiny", "-o", "{tmp}/b", "--tile", "64", "--stride", "65"], "stride"),
        (["build-engine", "tests.models:tiny", "-o", "{tmp}/b", "--std", "1,0,1"], "std"),
        (["build-engine", "demo", "-o", "{tmp}/b", "--tile", "16"], "give another --tile"),
        (["build-engine", "{bundle}", "-o", "{tmp}/b", "--tile", "32", "--bgr"], "--tile --bgr: a bundle"),
        (["run", "{bundle}", "{photos}", "-o", "{tmp}/out", "--tta", "--scales", "0"], "--scales: got 0"),
        (["run", "{bundle}", "{photos}", "-o", "{tmp}/out", "--tta", "--scales", "1,40"], "--scales: got 40"),
        (["run", "{bundle}", "{photos}", "-o", "{tmp}/out", "--no-flip"], "--no-flip: got it without --tta"),
        (["run", "{bundle}", "{photos}", "-o", "{tmp}/out", "--resize", "0x9"], "expected sides of 1"),
        (["run", "{bundle}", "{photos}", "-o", "{tmp}/out", "--resize", "half"], "expected none, WxH such as 512x512"),
        (["evaluate", "{bundle}", "{photos}", "--resize", "checkpoint"], "does not say what its images were resized"),
        (["evaluate", "{tmp}/empty", "{photos}"], "expected a folder made by build-engine"),
        (["evaluate", "{bundle}", "{tmp}/empty"], "got no images"),
        (["evaluate", "{bundle}", "{photos}"], "no labels"),
        (["inspect", "{tmp}/empty"], "empty"),
        (["inspect", "{tmp}/none.onnx"], "none.onnx"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    argv: list[str], message: str, tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    before = {path: path.read_bytes() for path in photos.iterdir()}
    words = [word.format(bundle=tiny_bundle, tmp=tmp_path, photos=photos) for word in argv]
    assert _run(*words) == 2
    assert message in _error(capsys)
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "out") == ["empty", "photos"]


def test_a_gate_that_fails_is_exit_3_and_leaves_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["build-engine", "tests.models:tiny", "-o", tmp_path / "b", "--tile", "64", "--max-error", "0"]
    assert _run(*argv) == 3
    assert "diverges" in _error(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "option",
    ["--tile 0", "--tile 1x2x3", "--threads -1", "--max-error nan", "--max-error -1", "--min-agreement 2", "--std 1,x"],
)
def test_a_wrong_command_line_is_exit_2(option: str) -> None:
    with pytest.raises(SystemExit) as error:
        _run("build-engine", "demo", "-o", "x", *option.split())
    assert error.value.code == 2


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_build_that_is_stopped_leaves_nothing(tmp_path: Path, name: str) -> None:
    argv = ["deploy.py", "build-engine", "tests.models:tiny", "-o", tmp_path / "b", "--tile", "64"]
    command = [sys.executable, "-u", *argv]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("load"):
            pass
        assert [path.name[:3] for path in tmp_path.iterdir()] == [".b."]  # half-way
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted; nothing half-written is left\n"
    assert not list(tmp_path.iterdir())


def test_demo_is_the_photographs_that_ship_unless_something_here_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(path.name for path in Path(deploy._photographs("demo")).iterdir()) == ["street-1.jpg", "street-2.jpg"]
    (tmp_path / "demo").mkdir()
    assert [deploy._photographs(text) for text in ("demo", "demo/a.jpg")] == ["demo", "demo/a.jpg"]


def test_an_image_bomb_is_refused_before_it_is_decoded(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("run", tiny_bundle, photos, "-o", tmp_path / "out", "--max-pixels", 10000) == 2
    text = capsys.readouterr().out
    assert "--max-pixels" in text
    assert "2 image(s)" in text


def test_a_corrupt_bundle_is_refused(tiny_bundle: Path, photos: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    data = bytearray((copy / "engine.bin").read_bytes())
    data[100] ^= 1
    (copy / "engine.bin").write_bytes(data)
    for argv in (["run", copy, photos, "-o", tmp_path / "out"], ["inspect", copy]):
        assert _run(*argv) == 2
        assert "engine.bin has changed" in _error(capsys)
    assert not (tmp_path / "out").exists()
    assert _run("build-engine", copy, "-o", copy) == 0, "what the message says to do: the engine is not read for it"
    assert _run("inspect", copy) == 0


def test_inspect_tells_what_a_bundle_is(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("inspect", tiny_bundle, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["runs_here"] is True
    assert result["output_shape"] == [1, 5, 16, 24]
    assert _run("inspect", tiny_bundle) == 0
    text = capsys.readouterr().out
    assert "every sha256 matches" in text
    assert "onnxsim" in text


def test_inspect_tells_what_a_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.models import tiny

    assert _run("inspect", "tests.models:tiny", "--tile", 64, "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == sum(p.numel() for p in tiny().parameters())


def test_a_bundle_is_rebuilt_in_place(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    (before,) = {path.stat().st_ino for path in copy.glob("engine.bin")}
    assert _run("build-engine", copy, "-o", copy) == 0
    (after,) = {path.stat().st_ino for path in copy.glob("engine.bin")}
    assert before != after
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_doctor_names_the_backends_and_the_core(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("doctor", "--json") == 0
    findings = {finding["topic"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["tiling core"]["status"] == "ok"
    assert findings["backend openvino"]["status"] == "ok"


@pytest.mark.parametrize("argv", [["build-engine", "demo", "-o", "{tmp}/b"], ["inspect", "demo"]], ids=lambda a: a[0])
def test_a_device_without_the_packages_for_building_says_so(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "onnx" else original(n, *a))
    assert _run(*(word.format(tmp=tmp_path) for word in argv)) == 2
    line = _error(capsys)
    assert "onnx not installed" in line
    assert "-e '.[export]'" in line


def test_doctor_says_how_to_mend_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "openvino" else original(n, *a))
    _run("doctor")
    lines = capsys.readouterr().out.splitlines()
    (index,) = [i for i, line in enumerate(lines) if "backend openvino" in line]
    assert lines[index].startswith("missing")
    assert lines[index + 1].endswith("pip install -c constraints.txt -e '.[cpu]'")
