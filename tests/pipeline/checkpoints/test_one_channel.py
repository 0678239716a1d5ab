"""Checkpoints of one channel: two classes by a threshold, whatever layout they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engines.errors import DeployError
from engines.segmenter import open_segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.checkpoints import load_model
from pipeline.checkpoints.sources import SourceOptions, load_source, summary
from pipeline.request import BuildRequest
from tests.pipeline.checkpoints.published import TINY, mmseg_state, picture, refusal, save, transformers

TWO = ("background", "vessel")


def one_channel() -> nn.Module:
    return nn.Conv2d(3, 1, 4, 4)


def one_channel_with_a_spec() -> tuple[nn.Module, ModelSpec]:
    return nn.Conv2d(3, 1, 4, 4), ModelSpec("net", "v1", ("water",), ((1, 2, 3),))


def one_channel_with_two_names() -> tuple[nn.Module, ModelSpec]:
    return nn.Conv2d(3, 1, 4, 4), ModelSpec("net", "v1", ("land", "water"), ((0, 0, 0), (1, 2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with num_labels=1."""
    library, path = transformers(), tmp_path_factory.mktemp("one") / "model"
    torch.manual_seed(0)
    config = library.SegformerConfig(num_labels=1, id2label={0: "water"}, label2id={"water": 0}, **TINY)
    model = library.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(20)
        model.decode_head.classifier.bias.zero_()
        model.decode_head.classifier.bias -= model(picture(64, 64)).logits.median()
    model.save_pretrained(path)
    return path


def test_a_hugging_face_folder_equals_transformers_sigmoid(folder: Path, tmp_path: Path) -> None:
    request = BuildRequest(str(folder), tmp_path / "b", Tiling(64, 64, 64, 64), backend="openvino", threads=1)
    manifest = build_bundle(request, lambda step, text: None)
    spec = manifest.spec
    assert (spec.classes, spec.palette[0], spec.threshold, spec.channels) == (
        ("background", "water"), (0, 0, 0), 0.5, 1)  # fmt: skip
    assert manifest.output_shape == (1, 1, 16, 16)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    model = transformers().SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    window = (torch.from_numpy(image).float() - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    with torch.inference_mode():
        logits = model(window.permute(2, 0, 1)[None]).logits
        full = nn.functional.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)[0, 0]
    probability = full.double().sigmoid().numpy()
    for threshold in (0.5, float(np.quantile(probability, 0.2))):
        with open_segmenter(tmp_path / "b", 1, threshold=threshold) as (segmenter, opened):
            mask = segmenter.segment(image, confidence=True)
        assert opened.spec.threshold == threshold
        clear = np.abs(probability - threshold) > 1e-5
        assert clear.mean() > 0.99
        assert 0.01 < mask.labels.mean() < 0.99
        assert np.array_equal(mask.labels[clear], (probability > threshold)[clear])
        winner = np.where(mask.labels == 1, probability, 1 - probability)
        np.testing.assert_allclose(mask.confidence, winner, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "threshold"),
    [
        (None, 0.3),  # mmsegmentation's own
        ("model = dict(decode_head=dict(type='SegformerHead', num_classes=2, out_channels=1, threshold=0.6))", 0.6),
        ("model = dict(\n    decode_head=dict(out_channels=1),\n    auxiliary_head=dict(threshold=0.6))", 0.3),
        ("model = dict(decode_head=[dict(threshold=0.7), dict(out_channels=1, threshold=0.2)])", 0.2),
        ("model = dict(decode_head=dict(threshold=open('/etc/passwd')))", 0.3),
        ("no ( python", 0.3),
        ("model = dict(decode_head=dict(threshold=7.0))", 0.3),
    ],
)
def test_mmsegmentation_of_out_channels_1(config: str | None, threshold: float, tmp_path: Path) -> None:
    state = mmseg_state()
    for leaf in ("weight", "bias"):
        state[f"decode_head.conv_seg.{leaf}"] = state[f"decode_head.conv_seg.{leaf}"][:1].clone()
    meta: dict[str, Any] = {"dataset_meta": {"classes": TWO, "palette": [[120, 120, 120], [6, 230, 230]]}}
    if config is not None:
        meta["cfg"] = config
    spec = load_model(save(tmp_path / "one.pth", state, meta)).spec
    assert (spec.classes, spec.threshold, spec.channels) == (TWO, threshold, 1)
    assert spec.palette == ((120, 120, 120), (6, 230, 230))


def test_mmsegmentation_of_two_channels_has_no_threshold(tmp_path: Path) -> None:
    state = mmseg_state()
    for leaf in ("weight", "bias"):
        state[f"decode_head.conv_seg.{leaf}"] = state[f"decode_head.conv_seg.{leaf}"][:2].clone()
    meta = {"dataset_meta": {"classes": TWO}, "cfg": "model = dict(decode_head=dict(threshold=0.6))"}
    spec = load_model(save(tmp_path / "two.pth", state, meta)).spec
    assert (spec.classes, spec.threshold, spec.channels) == (TWO, None, 2)


@pytest.mark.parametrize(
    ("factory", "classes", "colour"),
    [
        ("one_channel", ("background", "foreground"), None),
        ("one_channel_with_a_spec", ("background", "water"), (1, 2, 3)),
        ("one_channel_with_two_names", ("land", "water"), (1, 2, 3)),
    ],
)
def test_a_factory_of_one_channel(factory: str, classes: tuple[str, str], colour: tuple[int, int, int] | None) -> None:
    spec = load_model(f"{__name__}:{factory}", window=(64, 96)).spec
    assert (spec.classes, spec.threshold, spec.channels, spec.logits_stride) == (classes, 0.5, 1, 4)
    assert spec.palette[0] == (0, 0, 0)
    assert colour is None or spec.palette[1] == colour


def test_names_and_threshold_that_the_user_gives(tmp_path: Path) -> None:
    for names in (("road",), ("nothing", "road"), ("a", "b", "c")):
        path = tmp_path / f"{len(names)}.txt"
        path.write_text("\n".join(names))
    model, window = f"{__name__}:one_channel", (64, 96)
    spec = load_source(model, window, SourceOptions(classes=str(tmp_path / "1.txt"), threshold=0.7)).spec
    assert (spec.classes, spec.threshold) == (("background", "road"), 0.7)
    assert "one channel, road or background at a probability of 0.7" in summary(spec)
    spec = load_source(model, window, SourceOptions(classes=str(tmp_path / "2.txt"))).spec
    assert (spec.classes, spec.threshold, len(spec.palette)) == (("nothing", "road"), 0.5, 2)
    options = SourceOptions(classes=str(tmp_path / "3.txt"))
    assert "got 3 names, expected 2, or 1 beside the background" in refusal(lambda: load_source(model, window, options))


def test_a_spec_goes_to_json_and_back_and_an_older_one_is_read() -> None:
    one = ModelSpec("net", "v1", ("water",), ((1, 2, 3),), threshold=0.25)
    assert ModelSpec.from_json(json.loads(json.dumps(one.to_json()))) == one
    many = ModelSpec("net", "v1", ("a", "b"), ((0, 0, 0), (1, 2, 3)))
    older = {name: value for name, value in many.to_json().items() if name != "threshold"}
    assert ModelSpec.from_json(older) == many
    assert many.threshold is None
    assert many.channels == 2


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_a_spec_with_a_threshold_that_is_no_probability_is_refused(threshold: float) -> None:
    with pytest.raises(DeployError, match=r"got a threshold of .* and 2 classes, expected more than 0, less than 1"):
        ModelSpec("net", "v1", ("water",), ((1, 2, 3),), threshold=threshold)
    with pytest.raises(DeployError, match=r"got a threshold of 0\.5 and 3 classes"):
        ModelSpec("net", "v1", ("a", "b", "c"), ((1, 2, 3),) * 3, threshold=0.5)
