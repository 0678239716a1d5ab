"""The model that ships: small, trained, readable by others, and good on scenes it has never seen."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from calib.data.scenes import CLASSES, PALETTE, render
from pipeline.checkpoints import DEMOS, load_model
from pipeline.demo.save import load_hugging_face, save_hugging_face
from pipeline.demo.score import score, windows
from pipeline.models.segformer import SegFormer
from tests.models import TINY, randomise

DEMO = DEMOS["demo"]


def test_it_is_small_and_loads_as_what_it_is() -> None:
    assert (DEMO / "model.safetensors").stat().st_size <= 8_000_000
    spec = load_model("demo").spec
    assert spec.classes == CLASSES
    assert spec.palette == PALETTE
    assert (spec.architecture, spec.variant, spec.logits_stride) == ("segformer", "b0", 4)


def test_transformers_reads_it_and_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    theirs, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
        DEMO, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    x = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(x).logits
        logits = load_model("demo").module(x)
    assert (logits - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_it_sees_what_its_card_says() -> None:
    """On the card's twenty held-out scenes, to the last digit that it gives."""
    card = (DEMO / "README.md").read_text()
    row = re.search(r"\| 1024x512, whole \|(.*)\|", card)
    assert row
    stated = [float(number) for number in row.group(1).split("|")]
    miou, ious = score(load_model("demo").module, [render(seed, 512, 1024) for seed in range(20)])
    assert [round(100 * value, 1) for value in (miou, *ious.values())] == pytest.approx(stated, abs=0.11)


def test_saving_and_loading_is_lossless_to_half_precision(tmp_path: Path) -> None:
    config = replace(TINY, classes=len(CLASSES), eps_block=1e-5, eps_stage=1e-5)
    model = randomise(SegFormer(config))
    save_hugging_face(model, tmp_path)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        half = model.half().float()
        np.testing.assert_allclose(load_model(str(tmp_path)).module(x), half(x), atol=1e-4)
        again = SegFormer(config).eval()
        load_hugging_face(again, tmp_path)
        np.testing.assert_array_equal(again(x), half(x))


def test_what_is_saved_is_the_hubs_state(tmp_path: Path) -> None:
    """Names, shapes and types are those that transformers saves of a model of the saved config.json."""
    transformers = pytest.importorskip("transformers")
    model = randomise(SegFormer(replace(TINY, classes=len(CLASSES))))
    save_hugging_face(model, tmp_path)
    config = transformers.SegformerConfig.from_pretrained(tmp_path)
    transformers.SegformerForSemanticSegmentation(config).half().save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        {name: (value.shape, value.dtype) for name, value in load_file(folder / "model.safetensors").items()}
        for folder in (tmp_path, tmp_path / "theirs")
    )
    assert ours == theirs


def test_windows_cover_every_pixel_once() -> None:
    scene = render(2, 96, 160)
    parts = windows(scene, 64)
    assert [part.labels.shape for part in parts] == [(64, 64), (64, 64), (64, 32), (32, 64), (32, 64), (32, 32)]
    top = np.concatenate([part.image for part in parts[:3]], 1)
    bottom = np.concatenate([part.image for part in parts[3:]], 1)
    assert np.array_equal(np.concatenate([top, bottom]), scene.image)
    assert len(windows(scene, 192)) == 1


def test_score_is_the_intersection_over_union_of_the_whole_set() -> None:
    """Against scikit-free arithmetic on a stand-in that returns one-hot logits with a known share of errors."""
    scenes = [render(seed, 64, 96) for seed in range(2)]
    wrong = iter([1, 0])

    class Oracle(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            index = next(wrong)  # answers the first scene with the labels of the second, and the other way round
            return F.one_hot(torch.from_numpy(scenes[index].labels).long(), len(CLASSES)).permute(2, 0, 1)[None].float()

    miou, per_class = score(Oracle(), scenes)
    a, b = scenes[0].labels, scenes[1].labels
    for k, name in enumerate(CLASSES):
        union = 2 * ((a == k) | (b == k)).sum()
        if union:
            assert per_class[name] == pytest.approx(2 * ((a == k) & (b == k)).sum() / union)
    assert miou == pytest.approx(np.mean(list(per_class.values())))
