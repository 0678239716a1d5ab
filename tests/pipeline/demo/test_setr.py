"""The training of SETR: what is written is a checkpoint of mmsegmentation, and a crop is a piece of the window."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calib.data.scenes import CLASSES, PALETTE, render
from pipeline.checkpoints import DEMOS, load_model
from pipeline.demo.initialise import initialise, sines
from pipeline.demo.networks import SETRS, network
from pipeline.demo.save_setr import load_mmseg, mmseg_state, save_mmseg
from pipeline.demo.score import score, windows
from pipeline.models.setr import SETR, SETRConfig
from pipeline.models.vit import ViTConfig
from tests.models import randomise

WINDOW = (64, 96)


def small(name: str) -> SETR:
    """Of the same kind, for a window of 4 x 6 patches."""
    config = SETRS[name](64)
    vit = replace(config.vit, window=WINDOW, depth=4, taps=(3,) if len(config.vit.taps) == 1 else (0, 1, 2, 3))
    model = randomise(SETR(replace(config, vit=vit)))
    assert isinstance(model, SETR)
    return model


@pytest.mark.parametrize("name", SETRS)
def test_what_is_saved_loads_as_mmsegmentations(name: str, tmp_path: Path) -> None:
    """Nothing is assumed, since the file has its config; logits are those of the weights in halves."""
    model, path = small(name), tmp_path / "model.pth"
    save_mmseg(model, path)
    loaded = load_model(str(path), window=WINDOW)
    assert loaded.remarks == ()
    assert (loaded.spec.classes, loaded.spec.palette) == (CLASSES, PALETTE)
    assert loaded.spec.variant == model.config.variant
    x = torch.randn(1, 3, *WINDOW, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        half = model.half().float()
        torch.testing.assert_close(loaded.module(x), half(x), atol=1e-4, rtol=1e-4)
        again = small(name)
        initialise(again)
        load_mmseg(again, path)
        torch.testing.assert_close(again.eval()(x), half(x), atol=1e-4, rtol=1e-4)


def test_the_names_are_those_that_mmsegmentation_writes() -> None:
    """Held against the recorded names of its SETR PUP, block by block."""
    recorded = Path(__file__).parents[1] / "checkpoints" / "keys" / "setr_pup_mmseg0.txt"
    lines = [line.replace("layers.{0..23}", "layers.0") for line in recorded.read_text().splitlines()]
    theirs = {
        line.split()[0]
        for line in lines
        if line.startswith(("backbone.", "decode_head.up_convs.0", "decode_head.conv"))
    }
    names = (name.replace("layers.3.", "layers.0.") for name in mmseg_state(small("setr-pup")))
    ours = {name for name in names if name.startswith(("backbone.", "decode_head.up_convs.0", "decode_head.conv"))}
    ours = {name for name in ours if not name.startswith(("backbone.layers.1.", "backbone.layers.2."))}
    assert {name for name in ours if "num_batches" not in name} == {
        name for name in theirs if "num_batches" not in name
    }


@pytest.mark.parametrize("name", SETRS)
def test_a_crop_is_a_piece_of_the_window(name: str) -> None:
    """With the position embeddings of where it lies: some place of the grid gives exactly these logits."""
    model, run = small(name), network(name).run
    x = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    config, first = model.config, int(model.config.vit.class_token)
    grid = model.encoder.position[:, first:].reshape(1, 4, 6, -1)
    with torch.no_grad():
        found = run(model, x, np.random.default_rng(0))
        matches = 0
        for top in range(3):
            for left in range(3):
                piece = SETR(replace(config, vit=replace(config.vit, window=(32, 64)))).eval()
                position = grid[:, top : top + 2, left : left + 4].flatten(1, 2)
                state = model.state_dict() | {
                    "encoder.position": torch.cat((model.encoder.position[:, :first], position), 1)
                }
                piece.load_state_dict(state)
                matches += torch.equal(piece(x), found)
        assert matches == 1
        torch.testing.assert_close(
            run(model, torch.ones(1, 3, *WINDOW), np.random.default_rng(0)), model(torch.ones(1, 3, *WINDOW))
        )


def test_gradients_reach_the_positions_of_the_crop_alone() -> None:
    model = small("setr-pup")
    logits = network("setr-pup").run(model, torch.randn(1, 3, 32, 32), np.random.default_rng(0))
    torch.autograd.backward(logits.square().mean())
    gradient = model.encoder.position.grad
    assert gradient is not None
    assert int((gradient[0, 1:].abs().sum(1) > 0).sum()) == 4  # of 24 patches


def test_positions_start_as_waves() -> None:
    """Neighbours are alike, and every place is another."""
    waves = sines((4, 6), 64)
    assert waves.shape == (24, 64)
    near, far = (waves[0] - waves[1]).norm(), (waves[0] - waves[23]).norm()
    assert near < far
    assert torch.pdist(waves).min() > 0.1
    torch.testing.assert_close(waves[7, :16], torch.sin(10000.0 ** (-torch.arange(16) / 16)))  # row 1
    model = initialise(SETR(SETRConfig(ViTConfig((64, 96), 64, 2, 128, (1,)), "naive")))
    torch.testing.assert_close(model.encoder.position[0, 1:], waves)


def test_the_one_that_ships_is_small_and_loads_as_what_it_is() -> None:
    path = DEMOS["demo-setr"]
    assert path.stat().st_size <= 12_000_000
    loaded = load_model("demo-setr", window=(512, 512))
    assert loaded.remarks == ()
    assert (loaded.spec.architecture, loaded.spec.variant, loaded.spec.logits_stride) == ("setr", "pup-custom", 2)
    assert (loaded.spec.classes, loaded.spec.palette) == (CLASSES, PALETTE)


@pytest.mark.slow
def test_it_sees_what_its_card_says() -> None:
    """On the card's held-out scenes, to the last digit that it gives."""
    row = re.search(r"\| 1024x512, windows of 512 \|(.*)\|", (DEMOS["demo-setr"].parent / "README.md").read_text())
    assert row
    stated = [float(number) for number in row.group(1).split("|")]
    scenes = [part for seed in range(20) for part in windows(render(seed, 512, 1024), 512)]
    miou, ious = score(load_model("demo-setr", window=(512, 512)).module, scenes)
    assert [round(100 * value, 1) for value in (miou, *ious.values())] == pytest.approx(stated, abs=0.11)
