"""From model to bundle: verified at every step, and no bundle when a step is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from calib.data.datasets import open_dataset
from calib.data.scenes import render
from engines.backends import get_backend
from engines.bundle import GOLDEN, open_bundle
from engines.errors import DeployError, GateError
from engines.proof.agreement import Gate
from engines.proof.golden import Golden
from engines.proof.rebuild import rebuild
from engines.segmenter import open_segmenter
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.checkpoints.sources import SourceOptions
from pipeline.evaluation.slide import slide_decisions
from pipeline.request import Budget, BuildRequest
from tests import models

pytestmark = pytest.mark.usefixtures("exports_once")

TILING = Tiling(64, 96, 48, 64)


def _build(model: str, folder: Path, **changes):  # type: ignore[no-untyped-def]
    lines: list[tuple[str, str]] = []
    request = BuildRequest(model, folder, **{"tiling": TILING, "backend": "openvino", **changes})
    return build_bundle(request, lambda step, text: lines.append((step, text))), lines


def test_every_step_is_verified_and_logged(tmp_path: Path) -> None:
    manifest, lines = _build("tests.models:tiny", tmp_path / "b")
    assert [step["step"] for step in manifest.verification] == ["export", "simplify", "rewrite", "engine", "tiled mask"]
    assert all(step["labels"] >= 0.999 for step in manifest.verification)
    assert {"load", "export", "simplify", "compile", "engine", "tiled mask"} <= {step for step, _ in lines}
    assert json.loads((tmp_path / "b" / "report.json").read_text())["history"]
    assert not list((tmp_path / "b").glob("program*"))


def test_each_proof_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime runs the two windows through the exported and the rewritten graph: nothing else is another graph."""
    ran: list[tuple[int, ...]] = []
    real = onnxruntime.InferenceSession.run

    def run(self: Any, names: Any, feeds: dict[str, np.ndarray], *rest: Any) -> Any:
        ran.extend(value.shape for value in feeds.values())
        return real(self, names, feeds, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    manifest, lines = _build("tests.models:tiny", tmp_path / "b")
    assert ran == 4 * [(1, 3, 64, 96)]
    assert [step["step"] for step in manifest.verification][:3] == ["export", "simplify", "rewrite"]
    assert any(step == "batch" and "place(s)" in text for step, text in lines)


@pytest.mark.parametrize("name", ["tiny_dict", "tiny_tuple"])
def test_models_that_answer_with_a_dict_or_a_tuple(tmp_path: Path, name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with torch.no_grad():
        manifest, _ = _build(f"tests.models:{name}", tmp_path / "b")
    assert manifest.output_shape == (1, 5, 16, 24)
    with open_segmenter(tmp_path / "b") as (segmenter, _):
        x = (torch.from_numpy(image).permute(2, 0, 1).float() - torch.tensor(segmenter.spec.mean).view(3, 1, 1)) / (
            torch.tensor(segmenter.spec.std).view(3, 1, 1)
        )
        with torch.no_grad():
            logits = models.tiny()(x[None])
        np.testing.assert_array_equal(
            segmenter.segment(image).labels, slide_decisions(logits.numpy(), TILING, (64, 96))[0]
        )


def test_both_backends_agree(tiny_bundle: Path, tmp_path: Path) -> None:
    _build("tests.models:tiny", tmp_path / "torch", backend="torch")
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 96), dtype=np.float32)
    logits = []
    for folder in (tiny_bundle, tmp_path / "torch"):
        with open_segmenter(folder) as (segmenter, _):
            logits.append(segmenter.session.run(x).copy())
            with pytest.raises(DeployError, match=r"expected \(1, 3, 64, 96\)"):
                segmenter.session.run(x[:, :, :32])
    with torch.no_grad():
        np.testing.assert_allclose(logits[1], models.tiny()(torch.from_numpy(x)).numpy(), atol=1e-6)
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4)


def test_a_bundle_is_rebuilt_from_itself_without_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = rebuild(tiny_bundle, tmp_path / "again", log=lambda step, text: None)
    old = open_bundle(tiny_bundle).manifest
    assert manifest.spec == old.spec
    assert [s["step"] for s in manifest.verification] == [s["step"] for s in old.verification]
    assert open_bundle(tmp_path / "again").manifest == manifest


def test_an_engine_that_computes_something_else_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled engine is replaced by that of another model: exit 3, and the old bundle stays."""
    _build("tests.models:tiny", tmp_path / "b")
    before = (tmp_path / "b" / "engine.bin").read_bytes()
    _build("tests.models:other", tmp_path / "other")
    blob = (tmp_path / "other" / "engine.bin").read_bytes()
    backend = get_backend("openvino")
    monkeypatch.setattr(type(backend), "build", lambda self, model, config: blob)
    with pytest.raises(GateError, match="engine diverges from the checkpoint in PyTorch") as error:
        _build("tests.models:tiny", tmp_path / "b")
    assert error.value.exit_code == 3
    assert (tmp_path / "b" / "engine.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "other"]


def test_the_gate_can_be_tightened_until_it_closes(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="allowed"):
        _build("tests.models:tiny", tmp_path / "b", max_error=0.0, min_agreement=1.0)
    assert not (tmp_path / "b").exists()


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"NaN or infinite"):
        _build("tests.models:nan_weights", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_class_names_must_be_as_many_as_channels(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(DeployError, match="got 2 names, expected 5"):
        _build("tests.models:tiny", tmp_path / "b", options=SourceOptions(classes=str(tmp_path / "names.txt")))
    with pytest.raises(DeployError, match="got 19 names, expected 5"):
        _build("tests.models:tiny", tmp_path / "b", options=SourceOptions(classes="cityscapes"))


def test_what_the_user_says_ends_up_in_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    options = SourceOptions(classes=str(tmp_path / "names.txt"), mean=(1, 2, 3), std=(4, 5, 6), bgr=True)
    manifest, _ = _build("tests.models:tiny", tmp_path / "b", options=options)
    assert manifest.spec.classes == ("a", "b", "c", "d", "e")
    assert (manifest.spec.mean, manifest.spec.std, manifest.spec.channel_order) == ((1, 2, 3), (4, 5, 6), "BGR")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SourceOptions(mean=(0.485, 0.456, 0.406)), r"--mean 0.485,0.456,0.406: .* give --mean 123.675,116.28,103.53"),
        (SourceOptions(std=(0.229, 0.224, 0.225)), r"--std 0.229,.* give --std 58.395,57.12,57.375"),
        (SourceOptions(mean=(100, 100, 100), std=(50, 0, 50)), "expected positive"),
    ],
)
def test_mean_and_std_of_pixels_up_to_one_are_refused(tmp_path: Path, options: SourceOptions, message: str) -> None:
    with pytest.raises(DeployError, match=message):
        _build("tests.models:tiny", tmp_path / "b", options=options)
    assert not (tmp_path / "b").exists()


def test_the_photograph_to_verify_on_is_used(tmp_path: Path) -> None:
    sample = np.random.default_rng(0).integers(0, 256, (70, 300, 3), np.uint8)
    _build("tests.models:tiny", tmp_path / "b", sample=sample)
    golden = Golden.load((tmp_path / "b" / GOLDEN).read_bytes())
    assert np.array_equal(golden.image, sample[:64, : 96 + 64])
    assert golden.logits.shape[:2] == (2, 5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_of_one_answer_is_verified_on_more_and_by_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Every label of every engine is right; one that lost its last layer's input is refused all the same."""
    manifest, lines = _build("tests.models:one_class", tmp_path / "b", precision=precision)
    assert any(step == "warning" and "equal labels prove nothing" in text for step, text in lines)
    assert any(step == "engine" and "no evidence: 100 % of them are one class" in text for step, text in lines)
    assert manifest.verification[-1]["step"] == "stress"
    assert Golden.load((tmp_path / "b" / GOLDEN).read_bytes()).stress is not None
    monkeypatch.setattr(get_backend("openvino").__class__, "load", _flattened(get_backend("openvino").__class__.load))
    with pytest.raises(GateError, match=r"engine diverges .* 100 % of them are one class"):
        _build("tests.models:one_class", tmp_path / "c", precision=precision)
    assert not (tmp_path / "c").exists()


def _flattened(load: Any) -> Any:
    """Engines whose logits are the mean of each class."""

    @contextmanager
    def flat(self: Any, *args: Any) -> Iterator[Any]:
        with load(self, *args) as session:
            run = session.run
            session.run = lambda windows: np.broadcast_to(
                run(windows).mean((2, 3), keepdims=True), run(windows).shape
            ).copy()
            yield session

    return flat


def test_a_black_picture_proves_little_and_refuses_nothing(tmp_path: Path) -> None:
    _build("tests.models:tiny", tmp_path / "b", sample=np.zeros((64, 96, 3), np.uint8))


@pytest.mark.parametrize(("max_drop", "passes"), [(100.0, True), (-100.0, False)])
def test_where_labels_are_given_they_decide(tmp_path: Path, max_drop: float, passes: bool) -> None:
    """A gate that nothing passes is not asked; the mIoU is, and rebuilds are held to what was measured here."""
    scenes = tmp_path / "scenes"
    for kind in ("images", "labels"):
        (scenes / kind).mkdir(parents=True)
    scene = render(1, 64, 96)
    Image.fromarray(scene.image).save(scenes / "images" / "a.png")
    Image.fromarray(scene.labels).save(scenes / "labels" / "a.png")
    budget = Budget(max_drop, lambda spec: open_dataset(scenes, spec))
    again = {"tiling": Tiling(64, 96, 48, 64), "precision": "bf16", "budget": budget}
    if not passes:
        with pytest.raises(GateError, match=r"the engine loses .* points .* allowed -100 \(--max-drop"):
            _build("demo", tmp_path / "b", **again)
        assert not (tmp_path / "b").exists()
        return
    _, lines = _build("demo", tmp_path / "b", **again)
    assert any(step == "shipped" and "loses" in text for step, text in lines)
    gate = Gate.from_json(json.loads((tmp_path / "b" / "report.json").read_text())["gate"])
    assert gate is not None
    assert gate.max_relative < 0.5
    assert gate.min_labels > 0.9
    rebuild(tmp_path / "b", tmp_path / "c", log=lambda step, text: None)


@pytest.mark.parametrize("decoder", ["naive", "pup", "mla"])
@pytest.mark.parametrize("layout", ["fudan", "mmseg"])
def test_a_published_setr_checkpoint_becomes_an_engine(tmp_path: Path, layout: str, decoder: str) -> None:
    """From a .pth in the published layout to labels, against the functional reading of that code base."""
    from tests.pipeline.checkpoints import test_setr_layouts as setr

    state = {"fudan": setr.fudan_state, "mmseg": setr.mmseg_state}[layout](decoder)
    reference = {"fudan": setr.fudan_reference, "mmseg": setr.mmseg_reference}[layout]
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "setr.pth")
    _build(str(tmp_path / "setr.pth"), tmp_path / "b", tiling=Tiling(64, 64, 48, 48))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with open_segmenter(tmp_path / "b") as (segmenter, manifest):
        labels = segmenter.segment(image).labels
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (manifest.spec.mean, manifest.spec.std)
        )
    x = (torch.from_numpy(image).permute(2, 0, 1)[None].double() - mean) / std
    expected = reference(decoder, setr.doubled(state), x)[0]
    top2 = expected.topk(2, dim=0).values
    clear = (top2[0] - top2[1] >= 1e-3).numpy()
    assert clear.mean() > 0.99
    assert np.array_equal(labels[clear], expected.argmax(0).numpy()[clear])


def test_a_real_onnx_labels_what_onnx_runtime_labels(shared_data: Path, tmp_path: Path) -> None:
    """A network with logits at full resolution, on a photograph larger than the window."""
    import onnxruntime as ort

    tiling, path = Tiling(256, 256, 192, 192), shared_data / "onnx_cityscapes" / "edanet_cityscapes.onnx"
    manifest, _ = _build(str(path), tmp_path / "b", tiling=tiling)
    assert manifest.spec.classes[0] == "road"
    assert manifest.spec.logits_stride == 1
    with Image.open(sorted((shared_data / "camvid" / "val" / "images").iterdir())[5]) as file:
        image = np.asarray(file.convert("RGB"))
    with open_segmenter(tmp_path / "b") as (segmenter, _):
        labels = segmenter.segment(image).labels
    x = ((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype(np.float32)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    tops, lefts = tiling.placements(*image.shape[:2])
    crops = [np.ascontiguousarray(x[:, :, t : t + 256, left : left + 256]) for t in tops for left in lefts]
    logits = np.concatenate([session.run(None, {"image": crop})[0] for crop in crops])
    assert (labels == slide_decisions(logits, tiling, image.shape[:2])[0]).mean() > 0.9999


def test_real_checkpoint_on_real_images(shared_data: Path, tmp_path: Path) -> None:
    """The CamVid SegFormer, built and run in windows, labels what transformers labels."""
    pytest.importorskip("transformers")
    from transformers import SegformerForSemanticSegmentation

    tiling = Tiling(256, 256, 192, 192)
    _build(str(shared_data / "segformer-b0-camvid"), tmp_path / "b", tiling=tiling)
    model = SegformerForSemanticSegmentation.from_pretrained(shared_data / "segformer-b0-camvid").eval()
    path = sorted((shared_data / "camvid" / "val" / "images").iterdir())[0]
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB"))
    with open_segmenter(tmp_path / "b") as (segmenter, manifest):
        labels = segmenter.segment(image).labels
    assert manifest.spec.classes[3] == "road"
    x = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255 - torch.tensor(
        [0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)  # fmt: skip
    tops, lefts = tiling.placements(*image.shape[:2])
    with torch.no_grad():
        windows = [model(x[:, :, t : t + 256, l : l + 256]).logits.numpy() for t in tops for l in lefts]  # noqa: E741
    expected = slide_decisions(np.concatenate(windows), tiling, image.shape[:2])[0]
    assert (labels == expected).mean() > 0.9999
