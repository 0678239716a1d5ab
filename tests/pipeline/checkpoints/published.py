"""Random weights under the names of every published SegFormer layout, chosen so that every constant shows.

With ordinary weights a LayerNorm's eps of 1e-6 or 1e-5 changes nothing that float32 can see.  Here everything that
feeds a norm is scaled down until its variance is of the order of eps, and BatchNorm has statistics of its own.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from engines.errors import DeployError
from pipeline.models.segformer import VARIANTS

State = dict[str, Tensor]
CLASSES = 7
TINY: dict[str, Any] = {
    "hidden_sizes": [16, 32, 40, 64],
    "num_attention_heads": [1, 2, 5, 4],
    "decoder_hidden_size": 24,
}

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


def save(path: Path, state: object, meta: object = None) -> str:
    torch.save({"state_dict": state, "meta": meta}, path)
    return str(path)


def refusal(load: Callable[[], object]) -> str:
    """The message of the DeployError that `load` raises: one line, exit code 2."""
    with pytest.raises(DeployError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message
