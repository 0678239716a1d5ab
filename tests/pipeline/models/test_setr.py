"""The SETR module itself: sizes, strides, what it refuses, position embeddings, export."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from engines.errors import DeployError
from pipeline.models.setr import DECODERS, SETR, VARIANTS, SETRConfig, mla_taps
from pipeline.models.vit import ViTConfig, resize_position

FUDAN: dict[str, dict[str, object]] = {
    "naive": {},
    "pup": {"stages": 4, "kernel": 3},
    "mla": {"upsample": 4, "classify_kernel": 3, "align_corners": True},
}


def build(decoder: str, dim: int, depth: int, window: tuple[int, int]) -> SETR:
    taps = mla_taps(depth) if decoder == "mla" else (depth - 1,)
    vit = ViTConfig(window, dim, depth, 4 * dim, taps, class_token=decoder != "mla")
    return SETR(SETRConfig(vit, decoder, **FUDAN[decoder]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variant", "decoder", "millions"),
    [
        # The paper is quoted with 305.7, 318.3 and 310.6 M for Naive, PUP and MLA.  PUP as both code bases publish
        # it, four 3x3 convolutions of 256 channels, is smaller: its count here follows the code.
        ("large", "naive", 305.728),
        ("large", "pup", 309.597),
        ("large", "mla", 310.735),
        ("base", "naive", 87.620),
        ("base", "pup", 90.964),
        ("base", "mla", 92.430),
    ],
)
def test_published_sizes(variant: str, decoder: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(decoder, *VARIANTS[variant], window=(768, 768))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    assert model.config.variant == f"{decoder}-{variant}"
    assert model.config.vit.heads == {"base": 12, "large": 16}[variant]


@pytest.mark.parametrize(("decoder", "stride"), [("naive", 16), ("pup", 2), ("mla", 4)])
def test_large_logits_shape(decoder: str, stride: int) -> None:
    with torch.device("meta"):
        model = build(decoder, *VARIANTS["large"], window=(512, 768)).eval()
        logits = model(torch.empty(2, 3, 512, 768))
    assert model.config.logits_stride == stride
    assert logits.shape == (2, 19, 512 // stride, 768 // stride)


def test_published_epsilons() -> None:
    for decoder in DECODERS:
        model = build(decoder, 64, 4, (32, 32))
        assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
        assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


def test_mla_taps() -> None:
    assert mla_taps(24) == (5, 11, 17, 23)
    assert mla_taps(12) == (2, 5, 8, 11)
    with pytest.raises(DeployError, match="got 10 encoder blocks, expected a multiple of 4"):
        mla_taps(10)


@pytest.mark.parametrize("window", [(64, 70), (24, 64), (0, 16)])
def test_window_must_be_whole_patches(window: tuple[int, int]) -> None:
    with pytest.raises(DeployError, match=rf"window: got {window[0]}x{window[1]}, expected multiples of 16"):
        ViTConfig(window)


@pytest.mark.parametrize("dim", [100, 1280])
def test_unknown_head_count_is_refused(dim: int) -> None:
    with pytest.raises(DeployError, match=rf"ViT width: got {dim}"):
        ViTConfig(dim=dim)


def test_decoder_needs_its_taps() -> None:
    with pytest.raises(DeployError, match="got 'mla' with 1 encoder outputs"):
        SETRConfig(decoder="mla")
    with pytest.raises(DeployError, match="got 'fpn'"):
        SETRConfig(decoder="fpn")


def interpolation_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) float64 weights of 1-d linear interpolation with half-pixel centres, edges clamped."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    return np.stack([np.interp(centres, np.arange(old), column) for column in np.eye(old)], 1)


@pytest.mark.parametrize(("side", "grid"), [(4, (6, 9)), (6, (4, 3)), (5, (5, 8)), (4, (2, 8))])
def test_resize_position(side: int, grid: tuple[int, int]) -> None:
    position = torch.randn(1, 1 + side * side, 8, generator=torch.Generator().manual_seed(0))
    patches = position[0, 1:].double().numpy().reshape(side, side, 8)
    rows, columns = interpolation_matrix(side, grid[0]), interpolation_matrix(side, grid[1])
    expected = np.einsum("ai,bj,ijd->abd", rows, columns, patches).reshape(-1, 8)
    got = resize_position(position, grid)
    assert torch.equal(got[:, 0], position[:, 0])
    np.testing.assert_allclose(got[0, 1:].numpy(), expected, atol=1e-6)


def test_resize_position_leaves_the_trained_grid_alone() -> None:
    square, oblong = torch.randn(1, 17, 8), torch.randn(1, 16 * 32 + 16 + 1, 8)
    assert resize_position(square, (4, 4)) is square
    assert resize_position(oblong, (16, 33)) is oblong
    with pytest.raises(DeployError, match="got 528 patches, expected a square number or 16x16"):
        resize_position(oblong, (16, 16))


def test_class_token_takes_part_in_attention_but_is_not_returned() -> None:
    torch.manual_seed(0)
    encoder = build("naive", 64, 2, (32, 48)).encoder.eval()
    nn.init.normal_(encoder.position)
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        (before,) = encoder(x)
        assert encoder.class_token is not None
        encoder.class_token.add_(torch.randn(64))
        (after,) = encoder(x)
    assert before.shape == (1, 6, 64)
    assert (before - after).abs().max() > 1e-4


def test_config_is_frozen_and_replaceable() -> None:
    config = SETRConfig()
    assert dataclasses.replace(config, upsample=4).logits_stride == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.upsample = 4  # type: ignore[misc]


@pytest.mark.parametrize("decoder", ["pup", "mla"])
def test_exports_to_onnx(decoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(decoder, 64, 4, (32, 48)).eval()
    x = torch.randn(1, 3, 32, 48)
    path = tmp_path / "setr.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not ours to fail on
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, model(x).numpy(), atol=1e-4)
