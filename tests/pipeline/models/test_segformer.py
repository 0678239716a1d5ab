"""SegFormer against its three published implementations, in float32, on the weights of `published`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.checkpoints import load_model
from pipeline.models.segformer import VARIANTS
from tests.pipeline.checkpoints.published import (
    CLASSES,
    MMSEG_DIMS,
    MMSEG_HEADS,
    MMSEG_REDUCTIONS,
    TINY,
    huggingface_model,
    mmseg_state,
    nvlabs_state,
    picture,
    transformers,
    variant_config,
)

TOLERANCE = 2e-5  # measured: at most 4e-6; the tanh flavour of GELU would show as 2e-4
CAMVID = Path(__file__).parents[4] / "shared" / "data" / "segformer-b0-camvid"


def difference(module: nn.Module, reference: Tensor, image: Tensor) -> float:
    """Largest difference of the logits; the reference must be loud enough for it to say something."""
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    with torch.no_grad():
        logits = module(image)
    assert logits.shape == reference.shape
    assert logits.dtype == torch.float32
    loudness = float(reference.std((2, 3)).mean())  # over pixels: a bias alone must not count
    assert loudness > 0.2
    worst = float((logits - reference).abs().max())
    print(f"max |difference| {worst:.2e}, standard deviation over pixels {loudness:.2f}")
    return worst


def hf_logits(model: Any, image: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(image).logits
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_huggingface_parity(variant: str, tmp_path: Path) -> None:
    model = huggingface_model(**variant_config(variant))
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert (loaded.spec.architecture, loaded.spec.variant) == ("segformer", variant)
    assert loaded.spec.classes == tuple(f"class {index}" for index in range(CLASSES))
    assert loaded.spec.logits_stride == 4
    image = picture()
    assert difference(loaded.module, hf_logits(model, image), image) < TOLERANCE


@pytest.mark.parametrize("layout", ["hub", "memory"])
@pytest.mark.parametrize("storage", ["safetensors", "bin", "sharded"])
def test_huggingface_storage(storage: str, layout: str, tmp_path: Path) -> None:
    model = huggingface_model(**TINY, depths=[1, 2, 1, 2])
    if storage == "sharded" and layout == "memory":
        pytest.skip("transformers shards on saving, and saves in the hub's layout")
    model.save_pretrained(tmp_path, max_shard_size="100KB" if storage == "sharded" else "1GB")
    single = tmp_path / "model.safetensors"
    if storage == "sharded":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    elif layout == "memory":
        single.unlink()
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        assert any(key.startswith("segformer.stages.") for key in state)
        if storage == "bin":
            torch.save(state, tmp_path / "pytorch_model.bin")
        else:
            save_file(state, single)
    elif storage == "bin":
        state = load_file(single)
        assert any(key.startswith("segformer.encoder.") for key in state)
        torch.save(state, tmp_path / "pytorch_model.bin")
        single.unlink()
    image = picture(128, 64)
    assert difference(load_model(str(tmp_path)).module, hf_logits(model, image), image) < TOLERANCE


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_huggingface_gelu_flavours(act: str, tmp_path: Path) -> None:
    model = huggingface_model(**TINY, hidden_act=act)
    model.save_pretrained(tmp_path)
    image = picture()
    loaded = load_model(str(tmp_path)).module
    exact, other = hf_logits(model, image), hf_logits(huggingface_model(**TINY, hidden_act="relu"), image)
    assert (exact - other).abs().max() > 100 * TOLERANCE
    assert difference(loaded, exact, image) < TOLERANCE


def test_huggingface_unusual_dimensions(tmp_path: Path) -> None:
    config = {**TINY, "sr_ratios": [4, 4, 2, 1], "mlp_ratios": [2, 3, 4, 1], "patch_sizes": [3, 3, 5, 3]}
    model = huggingface_model(**config, strides=[2, 2, 2, 2], layer_norm_eps=0.5)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert (loaded.spec.variant, loaded.spec.logits_stride) == ("custom", 2)
    image = picture()
    assert difference(loaded.module, hf_logits(model, image), image) < TOLERANCE


def test_huggingface_eps_is_what_the_live_module_has() -> None:
    model = huggingface_model(**TINY, layer_norm_eps=1e-6)
    norms = [module for module in model.modules() if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d))]
    assert len(norms) > 20
    assert {module.eps for module in norms} == {1e-5}


@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs ../shared/data/segformer-b0-camvid")
def test_trained_checkpoint_parity() -> None:
    model = transformers().SegformerForSemanticSegmentation.from_pretrained(CAMVID).eval()
    loaded = load_model(str(CAMVID))
    assert loaded.spec.classes[:3] == ("sky", "building", "pole")
    assert len(loaded.spec.classes) == 11
    assert loaded.spec.mean == (123.675, 116.28, 103.53)
    assert loaded.spec.std == (58.395, 57.12, 57.375)
    image = picture(128, 192)
    assert difference(loaded.module, hf_logits(model, image), image) < TOLERANCE


def with_nvlabs_eps(model: Any) -> Any:
    """NVlabs leaves PyTorch's 1e-5 in the patch embeddings and on the reduced keys; all other LayerNorms have 1e-6."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and not re.search(r"patch_embeddings|sequence_reduction", name):
            module.eps = 1e-6
    return model


@pytest.mark.parametrize("variant", ["b0", "b1", "b2"])
def test_nvlabs_parity(variant: str, tmp_path: Path) -> None:
    model = huggingface_model(**variant_config(variant))
    path = tmp_path / "segformer.pth"
    torch.save({"state_dict": nvlabs_state(model), "meta": {"CLASSES": tuple("abcdefg")}}, path)
    loaded = load_model(str(path))
    assert (loaded.spec.source, loaded.spec.variant) == ("NVlabs/SegFormer", variant)
    assert loaded.spec.classes == tuple("abcdefg")
    image = picture()
    everywhere = hf_logits(model, image)
    reference = hf_logits(with_nvlabs_eps(model), image)
    assert (reference - everywhere).abs().max() > 100 * TOLERANCE  # eps is visible on these weights
    assert difference(loaded.module, reference, image) < TOLERANCE


def mmseg_reference(s: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """A second reading of mmsegmentation's MixVisionTransformer and SegformerHead, on functional building blocks."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), **options)

    def conv_bn_relu(name: str, x: Tensor) -> Tensor:
        mean, var, gain, bias = (s[f"{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(conv(f"{name}.conv", x), mean, var, gain, bias, training=False, eps=1e-5))

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(2).mT

    def grid(x: Tensor, size: tuple[int, int]) -> Tensor:
        return x.mT.reshape(x.shape[0], x.shape[2], *size)

    def attend(name: str, x: Tensor, stage: int, size: tuple[int, int]) -> Tensor:
        context, ratio = x, MMSEG_REDUCTIONS[stage]
        if ratio > 1:
            context = norm(f"{name}.norm", tokens(conv(f"{name}.sr", grid(x, size), stride=ratio)))
        attention = nn.MultiheadAttention(MMSEG_DIMS[stage], MMSEG_HEADS[stage], batch_first=True)
        attention.load_state_dict(
            {
                key: s[f"{name}.attn.{key}"]
                for key in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            }
        )
        out: Tensor = attention(x, context, context)[0]
        return out

    features = []
    x = image
    for stage in range(4):
        p = f"backbone.layers.{stage}"
        x = conv(f"{p}.0.projection", x, stride=2 if stage else 4, padding=1 if stage else 3)
        size = (x.shape[2], x.shape[3])
        y = norm(f"{p}.0.norm", tokens(x))
        for block in (f"{p}.1.{i}" for i in range(2)):
            y = y + attend(f"{block}.attn", norm(f"{block}.norm1", y), stage, size)
            z = conv(f"{block}.ffn.layers.0", grid(norm(f"{block}.norm2", y), size))
            z = F.gelu(conv(f"{block}.ffn.layers.1", z, padding=1, groups=z.shape[1]))
            y = y + tokens(conv(f"{block}.ffn.layers.4", z))
        x = grid(norm(f"{p}.2", y), size)
        features.append(x)
    full = features[0].shape[2:]
    maps = [conv_bn_relu(f"decode_head.convs.{i}", feature) for i, feature in enumerate(features)]
    maps = [F.interpolate(m, full, mode="bilinear", align_corners=False) for m in maps]
    return conv("decode_head.conv_seg", conv_bn_relu("decode_head.fusion_conv", torch.cat(maps, 1)))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_mmseg_parity(prefix: str, tmp_path: Path) -> None:
    state = mmseg_state()
    path = tmp_path / "segformer.pth"
    meta = {"dataset_meta": {"classes": tuple("abcdefg"), "palette": [[i, 2 * i, 3 * i] for i in range(CLASSES)]}}
    torch.save({"state_dict": {prefix + key: tensor for key, tensor in state.items()}, "meta": meta}, path)
    loaded = load_model(str(path))
    assert (loaded.spec.source, loaded.spec.variant) == ("mmsegmentation SegFormer", "b0")
    assert loaded.spec.palette[2] == (2, 4, 6)
    image = picture()
    with torch.no_grad():
        reference = mmseg_reference(state, image)
    assert difference(loaded.module, reference, image) < TOLERANCE
