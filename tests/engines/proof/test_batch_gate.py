"""Engines of several windows: the same masks, and no bundle where an item of the batch is not what it is alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

import deploy
from engines.backends import get_backend
from engines.backends.onnx_bytes import with_batch
from engines.backends.openvino import openvino
from engines.bundle import Manifest, open_bundle, seal
from engines.contract import Backend, BuildConfig, Session
from engines.errors import DeployError, GateError
from engines.measure.bench import bench
from engines.proof.batch_gate import compare_batch, different
from engines.proof.first_run import gate_of
from engines.proof.golden import Golden
from engines.segmenter import Segmenter, open_segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling

pytestmark = pytest.mark.usefixtures("exports_once")

SIZES = ((64, 96), (150, 333), (40, 50), (1, 1), (211, 97))


def _run(*argv: object) -> int:
    return deploy.main([str(word) for word in argv])


def _build(model: str, folder: Path, *more: object) -> int:
    return _run("build-engine", f"tests.models:{model}", "-o", folder, "--tile", "64x96", "--stride", "48x64", *more)


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tests.models:tiny` in windows of 64x96, three at once."""
    folder = tmp_path_factory.mktemp("bundles") / "three"
    assert _build("tiny", folder, "--batch", 3) == 0
    return folder


def _masks(folder: Path) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    with open_segmenter(folder) as (segmenter, manifest):
        assert segmenter.first_window(np.zeros((9, 9, 3), np.uint8)).shape[0] == manifest.batch
        for size in SIZES:
            yield segmenter.segment(rng.integers(0, 256, (*size, 3), np.uint8)).labels


def test_three_windows_at_once_give_the_same_masks(tiny_bundle: Path, of_three: Path) -> None:
    assert open_bundle(of_three).manifest.batch == 3
    for one, three in zip(_masks(tiny_bundle), _masks(of_three), strict=True):
        assert np.array_equal(one, three)


def test_a_class_token_is_there_for_every_window(tmp_path: Path) -> None:
    assert _build("tiny_pup", tmp_path / "one") == 0
    assert _build("tiny_pup", tmp_path / "three", "--batch", 3) == 0
    for one, three in zip(_masks(tmp_path / "one"), _masks(tmp_path / "three"), strict=True):
        assert np.array_equal(one, three)


def test_the_log_and_the_bundle_say_what_was_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _build("tiny", tmp_path / "b", "--batch", 4, "--precision", "fp16") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("batch       4 windows at once equal 4 single runs: max |diff|") for line in lines)
    found = json.loads((tmp_path / "b" / "report.json").read_text())["batch"]
    assert found["windows"] == 4
    assert [step["reference"] for step in found["agreements"]] == ["4 single runs"]
    steps = [step["step"] for step in open_bundle(tmp_path / "b").manifest.verification]
    assert steps[-4:] == ["batch", "engine", "tiled mask", "stress"]  # it answers one class on the sample
    assert _run("inspect", tmp_path / "b") == 0
    assert "fp16, 4 window(s) at once, openvino" in capsys.readouterr().out
    assert _run("inspect", tmp_path / "b", "--layers") == 0
    report = bench(tmp_path / "b", None, None, 1, 1, 1)
    assert report.settings["batch"] == 4
    assert "\n4 windows " in str(report)


def test_a_rebuild_keeps_the_batch_or_takes_another(of_three: Path, tmp_path: Path) -> None:
    for words, batch in (([], 3), (["--batch", 2], 2), (["--batch", 1], 1)):
        assert _run("build-engine", of_three, "-o", tmp_path / "b", *words) == 0
        manifest = open_bundle(tmp_path / "b").manifest
        assert manifest.batch == batch
        assert [step["step"] for step in manifest.verification].count("batch") == (batch > 1)
        assert ("batch" in open_bundle(tmp_path / "b").report()) is (batch > 1)
        with open_segmenter(tmp_path / "b") as (segmenter, _):
            assert segmenter.segment(np.zeros((70, 200, 3), np.uint8)).labels.shape == (70, 200)


def test_evaluate_warms_up_with_a_whole_batch(of_three: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name, size in (("images", (64, 96, 3)), ("labels", (64, 96))):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / name / "a.png")
    assert _run("evaluate", of_three, tmp_path) == 0


def _wrong(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second window of a batch is answered wrongly, as NVIDIA/TensorRT issue 4853 has it."""
    right = openvino.OpenVINOSession.run

    def run(self: openvino.OpenVINOSession, windows: np.ndarray) -> np.ndarray:
        logits = right(self, windows).copy()
        if len(logits) > 1:
            logits[1] = logits[0] if answer == "another's" else np.nan
        return logits

    monkeypatch.setattr(openvino.OpenVINOSession, "run", run)


@pytest.mark.parametrize("answer", ["another's", "nan"])
def test_an_engine_that_is_wrong_beyond_one_window_is_no_bundle(
    answer: str, of_three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _wrong(answer, monkeypatch)
    assert _build("tiny", tmp_path / "b", "--batch", 3) == 3
    error = capsys.readouterr().err
    assert "batch: window 2 of 3" in error
    assert error.endswith("build with --batch 1\n")
    assert error.count("\n") == 1
    assert _run("build-engine", of_three, "-o", tmp_path / "again") == 3
    assert not list(tmp_path.iterdir())
    assert _build("tiny", tmp_path / "b", "--batch", 1) == 0


class _Session:
    def __init__(self, wrong: int) -> None:
        self._wrong = wrong

    def run(self, windows: np.ndarray) -> np.ndarray:
        logits = np.repeat(windows[:, :1], 2, axis=1)
        logits[:, 1] = 0
        if len(windows) > 1:
            logits[self._wrong] = -logits[self._wrong]
        return logits


class _TensorRT(Backend):
    name = "tensorrt"

    def build(self, model: Path, config: BuildConfig) -> bytes:
        return b"an engine"

    def device(self) -> str:
        return "cuda sm_87 Orin"


@pytest.mark.parametrize("wrong", [0, 1, 6])
def test_every_item_is_looked_at_and_the_known_issue_is_named(wrong: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 56, 3), np.uint8)
    golden = Golden(image, np.zeros((2, 2, 4, 4), np.float32), 1, image[..., 0], "the checkpoint")
    spec = ModelSpec("test", "", ("a", "b"), ((0, 0, 0), (1, 1, 1)))

    @contextmanager
    def opened(blob: bytes, config: BuildConfig) -> Iterator[Segmenter]:
        session: Session = _Session(wrong)
        yield Segmenter.on_host(session, spec, Tiling(32, 32, 24, 24), batch=config.batch)

    lines: list[str] = []
    config = BuildConfig(batch=7)
    with pytest.raises(GateError, match=rf"window {wrong + 1} of 7 .*sm_87.*issue 4853.*--batch 1") as error:
        compare_batch(opened, _TensorRT(), Path(), b"", config, golden, lambda step, text: lines.append(text))
    assert error.value.exit_code == 3
    assert not any("equal" in line for line in lines)


def test_the_windows_that_are_compared_are_all_different() -> None:
    windows = [np.full((1, 3, 32, 32), value, np.float32) for value in (0.5, 0.7)]
    for given in (windows, [np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)]):
        made = different(given, 64)
        assert len({window.tobytes() for window in made}) == 64
        assert np.array_equal(made[0], given[0])
        assert {window.shape for window in made} == {(1, 3, 32, 32)}


def test_the_checkpoints_logits_are_asked_of_every_place_in_the_batch(of_three: Path) -> None:
    """Golden has two windows, so the third place holds the first of them again."""
    golden, gate = Golden.load((of_three / "golden.npz").read_bytes()), gate_of(open_bundle(of_three))
    with open_segmenter(of_three) as (segmenter, manifest):
        for third, right in ((0, True), (1, False)):
            session: Session = _Third(segmenter.session, third)
            other = Segmenter.on_host(session, manifest.spec, manifest.tiling, batch=3)
            with nullcontext() if right else pytest.raises(GateError, match="engine diverges"):
                golden.verify(other, gate, "fp32")


class _Third:
    """Answers the third window of a batch with what it answers to another."""

    def __init__(self, session: Session, other: int) -> None:
        self._session, self._other = session, other

    def run(self, windows: np.ndarray) -> np.ndarray:
        logits = self._session.run(windows).copy()
        logits[2] = logits[self._other]
        return logits


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_reference_takes_one_window(backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _build("tiny", tmp_path / "b", "--batch", 2, "--backend", backend) == 2
    assert "takes 1 window at a time, got --batch 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["0", "65", "-1", "1.5", "two"])
def test_a_batch_is_1_to_64(value: str) -> None:
    with pytest.raises(SystemExit) as error:
        _run("build-engine", "demo", "-o", "x", "--batch", value)
    assert error.value.code == 2


@pytest.mark.parametrize("batch", [0, 65, "2", None])
def test_a_manifest_with_an_impossible_batch_is_refused(tiny_bundle: Path, batch: object) -> None:
    body = {**open_bundle(tiny_bundle).manifest.to_json(), "batch": batch}
    with pytest.raises(DeployError, match=r"expected (1 to 64|a whole number)"):
        Manifest.from_json(body)


def test_a_bundle_from_before_there_were_batches_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    from engines.files import file_sha256
    from engines.proof.rebuild import rebuild

    old = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    report = json.loads((old / "report.json").read_text())
    report["history"].pop()
    (old / "report.json").write_text(json.dumps(report))
    manifest = open_bundle(tiny_bundle).manifest
    seal(old, replace(manifest, files={**manifest.files, "report.json": file_sha256(old / "report.json")}))
    with pytest.raises(DeployError, match="takes one window at a time; build it from its model"):
        rebuild(old, tmp_path / "new", log=lambda *line: None, batch=2)
    rebuild(old, tmp_path / "new", log=lambda *line: None, batch=1)


def test_openvino_takes_the_number_of_windows_that_it_was_built_for(of_three: Path) -> None:
    bundle = open_bundle(of_three)
    blob = bundle.read("engine.bin")
    message = r"got \(1, 3, 64, 96\) float32, expected \(3, 3, 64, 96\)"
    with get_backend("openvino").load(blob, BuildConfig()) as session, pytest.raises(DeployError, match=message):
        session.run(np.zeros((1, 3, 64, 96), np.float32))


def test_only_the_number_of_windows_changes_in_the_file(of_three: Path) -> None:
    """Against the onnx package, which reads what was written without it."""
    onnx = pytest.importorskip("onnx")
    content = (of_three / "model.onnx").read_bytes()
    changed = with_batch(content, 64)
    assert sum(a != b for a, b in zip(content, changed, strict=True)) == 2
    expected = onnx.load_from_string(content)
    for value in (*expected.graph.input, *expected.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 64
    assert onnx.load_from_string(changed) == expected
    onnx.checker.check_model(onnx.load_from_string(changed), full_check=True)


def test_a_file_that_declares_something_else_is_refused(of_three: Path) -> None:
    content = (of_three / "model.onnx").read_bytes()
    for damaged in (b"", content[:-9], with_batch(content, 3), b"\xff" * 40, b"\x3a\x00"):
        with pytest.raises(DeployError, match="expected one input, and outputs of one window"):
            with_batch(damaged, 3)
