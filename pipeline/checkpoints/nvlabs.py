"""Checkpoints of NVlabs/SegFormer, the paper's own code: MiT with one packed K/V projection, and the MLP decoder.

Its LayerNorms have eps 1e-6 in the blocks and after each stage, but PyTorch's 1e-5 in the patch embeddings and on
the reduced keys.  Number of heads and strides leave no trace in the weights: the MiT variant tells them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engines.errors import DeployError
from pipeline.checkpoints.common import Parsed, State, require, split_rows, transfer
from pipeline.models.segformer import VARIANTS, SegFormer, SegFormerConfig

NAME = "NVlabs/SegFormer"

# The base class of the heads makes conv_seg, which this head replaces by linear_pred and never calls.
_UNUSED = ("decode_head.conv_seg.", "auxiliary_head.")
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.q": "attn.q",
    "attention.out": "attn.proj",
    "attention.reduce": "attn.sr",
    "attention.reduce_norm": "attn.norm",
    "ffn.fc1": "mlp.fc1",
    "ffn.dwconv": "mlp.dwconv.dwconv",
    "ffn.fc2": "mlp.fc2",
}


def matches(keys: frozenset[str]) -> bool:
    return any(key.startswith("backbone.patch_embed1.") for key in keys) and any(
        key.startswith("decode_head.linear_fuse.") for key in keys
    )


def load(state: State, window: tuple[int, int]) -> Parsed:
    """A SegFormer; `window` is not needed, since it has no position embedding.  Raises DeployError."""
    dims = tuple(require(state, f"backbone.patch_embed{i}.proj.weight", 4).shape[0] for i in range(1, 5))
    depths = tuple(count_blocks(state, f"backbone.block{i}.") for i in range(1, 5))
    variant = variant_of(dims, depths)
    config = SegFormerConfig(
        classes=require(state, "decode_head.linear_pred.weight", 4).shape[0],
        dims=dims,
        depths=depths,
        decoder_dim=require(state, "decode_head.linear_fuse.conv.weight", 4).shape[0],
    )
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            for leaf in ("weight", "bias"):
                split_rows(state, f"backbone.block{stage}.{block}.attn.kv.{leaf}", 2)
    with torch.device("meta"):
        model = SegFormer(config)
    transfer(model, state, _rename, _UNUSED)
    return Parsed(model, "segformer", variant, logits_stride=4)


def variant_of(dims: tuple[int, ...], depths: tuple[int, ...]) -> str:
    """``b0`` to ``b5``, by the encoder; the decoder's width follows from its weights.  Raises DeployError."""
    for name, (known_dims, known_depths, _) in VARIANTS.items():
        if (dims, depths) == (known_dims, known_depths):
            return name
    raise DeployError(
        f"SegFormer: got stages of width {dims} and depth {depths}, expected MiT-B0 to B5, whose head counts are "
        "known; load another encoder through a Python factory"
    )


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different integers follow `prefix` in the keys."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _rename(ours: str) -> str:
    stem, leaf = ours.rsplit(".", 1)
    match stem.split("."):
        case ["stages", stage, "embed", part]:
            return f"backbone.patch_embed{int(stage) + 1}.{part}.{leaf}"
        case ["stages", stage, "norm"]:
            return f"backbone.norm{int(stage) + 1}.{leaf}"
        case ["stages", stage, "blocks", block, "attention", "k" | "v" as part]:
            return f"backbone.block{int(stage) + 1}.{block}.attn.kv.{leaf}#{'kv'.index(part)}"
        case ["stages", stage, "blocks", block, *part]:
            return f"backbone.block{int(stage) + 1}.{block}.{_BLOCK['.'.join(part)]}.{leaf}"
        case ["head", "project", stage]:
            return f"decode_head.linear_c{int(stage) + 1}.proj.{leaf}"
        case ["head", part]:
            return f"decode_head.{_HEAD[part]}.{leaf}"
    raise KeyError(ours)


_HEAD = {"fuse": "linear_fuse.conv", "norm": "linear_fuse.bn", "classify": "linear_pred"}
