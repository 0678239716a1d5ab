"""SegFormer against its three published implementations, on weights chosen so that every constant shows.

With ordinary weights a LayerNorm's eps of 1e-6 or 1e-5 changes nothing that float32 can see.  Here everything that
feeds a norm is scaled down until its variance is of the order of eps, and BatchNorm has statistics of its own.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.checkpoints import load_model
from pipeline.segformer import VARIANTS

TOLERANCE = 2e-5  # measured: at most 4e-6; the tanh flavour of GELU would show as 2e-4
CLASSES = 7
CAMVID = Path(__file__).parents[2].parent / "shared" / "data" / "segformer-b0-camvid"
TINY = {"hidden_sizes": [16, 32, 40, 64], "num_attention_heads": [1, 2, 5, 4], "decoder_hidden_size": 24}
State = dict[str, Tensor]

# What feeds a norm in Hugging Face's module, and by how much it is scaled down.
QUIET = re.compile(r"patch_embeddings|\.o_proj\.|\.fc2\.|sequence_reduction\.sequence_reduction\.")
QUIETLY = 3e-3
FUSE = re.compile(r"linear_fuse|\.conv\.weight")


def transformers() -> ModuleType:
    os.environ["HF_HUB_OFFLINE"] = "1"
    return importlib.import_module("transformers")


def huggingface_model(seed: int = 0, **config: Any) -> Any:
    """A SegformerForSemanticSegmentation in eval mode, every parameter and statistic random."""
    library = transformers()
    labels = {index: f"class {index}" for index in range(CLASSES)}
    model = library.SegformerForSemanticSegmentation(library.SegformerConfig(id2label=labels, **config)).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            randomise(tensor, name, random, QUIETLY if QUIET.search(name) else 1.0)
    return model


def variant_config(variant: str) -> dict[str, Any]:
    dims, depths, decoder = VARIANTS[variant]
    return {"hidden_sizes": list(dims), "depths": list(depths), "decoder_hidden_size": decoder}


def randomise(tensor: Tensor, name: str, random: torch.Generator, scale: float = 1.0) -> None:
    if not tensor.is_floating_point():
        return
    if name.endswith("running_var"):
        tensor.uniform_(5e-6, 1e-4, generator=random)  # of the order of BatchNorm's eps
    elif name.endswith("running_mean"):
        tensor.normal_(0, 3e-3, generator=random)
    elif tensor.ndim == 1:
        gain = float(name.endswith("weight"))  # of a norm: around 1
        tensor.normal_(gain, 0.3, generator=random).mul_(scale)
    else:
        before_bn = 0.01 if FUSE.search(name) else 1.0  # BatchNorm divides by the small running_var
        tensor.normal_(0, before_bn * tensor[0].numel() ** -0.5, generator=random).mul_(scale)


def picture(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(9))


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
        state = importlib.import_module("safetensors.torch").load_file(single)
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


# NVlabs' names for what Hugging Face's module calls otherwise; {} is the stage, counted from 1.
NVLABS = [
    (r"segformer\.stages\.{}\.patch_embeddings\.layer_norm\.", "backbone.patch_embed{}.norm."),
    (r"segformer\.stages\.{}\.patch_embeddings\.", "backbone.patch_embed{}."),
    (r"segformer\.stages\.{}\.blocks\.", "backbone.block{}."),
    (r"segformer\.stages\.{}\.layer_norm\.", "backbone.norm{}."),
    (r"decode_head\.linear_projections\.{}\.", "decode_head.linear_c{}."),
]
NVLABS_INNER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.q_proj": "attn.q",
    "attention.o_proj": "attn.proj",
    "attention.sequence_reduction.sequence_reduction": "attn.sr",
    "attention.sequence_reduction.layer_norm": "attn.norm",
    "decode_head.batch_norm": "decode_head.linear_fuse.bn",
    "decode_head.linear_fuse.weight": "decode_head.linear_fuse.conv.weight",
    "decode_head.classifier": "decode_head.linear_pred",
}


def nvlabs_state(model: Any) -> State:
    """The model's weights under NVlabs' names: K above V in one matrix, and the unused conv_seg of the base class."""
    source = model.state_dict()
    state: State = {}
    for key, tensor in source.items():
        if ".v_proj." in key:
            continue
        if ".k_proj." in key:
            tensor = torch.cat([tensor, source[key.replace(".k_proj.", ".v_proj.")]])
            key = key.replace("attention.k_proj", "attn.kv")
        for stage in range(4):
            for pattern, name in NVLABS:
                key = re.sub(f"^{pattern.format(stage)}", name.format(stage + 1), key)
        for old, new in NVLABS_INNER.items():
            key = key.replace(old, new)
        state[key] = tensor.clone()
    state["decode_head.conv_seg.weight"] = torch.zeros(CLASSES, 128, 1, 1)
    state["decode_head.conv_seg.bias"] = torch.zeros(CLASSES)
    return state


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


MMSEG_DIMS, MMSEG_HEADS, MMSEG_REDUCTIONS = (32, 64, 160, 256), (1, 2, 5, 8), (8, 4, 2, 1)
MMSEG_WIDTH = 48  # of the decoder; not the published 256, so that it must be read from the weights


def mmseg_state(seed: int = 1) -> State:
    """Random weights of MiT-B0 and mmsegmentation's decoder under its names."""
    random, state = torch.Generator().manual_seed(seed), State()

    def add(name: str, *shape: int, scale: float = 1.0) -> None:
        state[name] = torch.empty(shape)
        randomise(state[name], name, random, scale)

    def layer(name: str, *shape: int, bias: bool = True, scale: float = 1.0) -> None:
        add(f"{name}.weight", *shape, scale=scale)
        if bias:
            add(f"{name}.bias", shape[0], scale=scale)

    def conv_bn(name: str, *shape: int) -> None:
        layer(f"{name}.conv", *shape, bias=False)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            add(f"{name}.bn.{leaf}", shape[0])
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(160000)

    for stage, (dim, reduction) in enumerate(zip(MMSEG_DIMS, MMSEG_REDUCTIONS, strict=True)):
        p, size = f"backbone.layers.{stage}", 3 if stage else 7
        channels = MMSEG_DIMS[stage - 1] if stage else 3
        layer(f"{p}.0.projection", dim, channels, size, size, scale=QUIETLY)
        layer(f"{p}.0.norm", dim, scale=QUIETLY)
        for block in (f"{p}.1.{i}" for i in range(2)):
            layer(f"{block}.norm1", dim)
            add(f"{block}.attn.attn.in_proj_weight", 3 * dim, dim)
            add(f"{block}.attn.attn.in_proj_bias", 3 * dim)
            layer(f"{block}.attn.attn.out_proj", dim, dim, scale=QUIETLY)
            if reduction > 1:
                layer(f"{block}.attn.sr", dim, dim, reduction, reduction, scale=QUIETLY)
                layer(f"{block}.attn.norm", dim)
            layer(f"{block}.norm2", dim)
            layer(f"{block}.ffn.layers.0", 4 * dim, dim, 1, 1)
            layer(f"{block}.ffn.layers.1", 4 * dim, 1, 3, 3)
            layer(f"{block}.ffn.layers.4", dim, 4 * dim, 1, 1, scale=QUIETLY)
        layer(f"{p}.2", dim)
        conv_bn(f"decode_head.convs.{stage}", MMSEG_WIDTH, dim, 1, 1)
    conv_bn("decode_head.fusion_conv", MMSEG_WIDTH, 4 * MMSEG_WIDTH, 1, 1)
    layer("decode_head.conv_seg", CLASSES, MMSEG_WIDTH, 1, 1)
    return state


def mmseg_reference(s: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """A second reading of mmsegmentation's MixVisionTransformer and SegformerHead, on functional building blocks."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), **options)

    def conv_bn_relu(name: str, x: Tensor) -> Tensor:
        stats = (s[f"{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(conv(f"{name}.conv", x), *stats, training=False, eps=1e-5))

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(2).mT

    def attend(name: str, x: Tensor, stage: int, size: tuple[int, int]) -> Tensor:
        context, ratio = x, MMSEG_REDUCTIONS[stage]
        if ratio > 1:
            context = norm(f"{name}.norm", tokens(conv(f"{name}.sr", x.mT.unflatten(2, size), stride=ratio)))
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
            z = conv(f"{block}.ffn.layers.0", norm(f"{block}.norm2", y).mT.unflatten(2, size))
            z = F.gelu(conv(f"{block}.ffn.layers.1", z, padding=1, groups=z.shape[1]))
            y = y + tokens(conv(f"{block}.ffn.layers.4", z))
        x = norm(f"{p}.2", y).mT.unflatten(2, size)
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
