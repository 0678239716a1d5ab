"""SegFormer checkpoints of mmsegmentation 0.x and 1.x: MiT on nn.MultiheadAttention, and a decoder of its own.

Against NVlabs: Q, K and V are packed in ``in_proj``, the Mix-FFN consists of convolutions, every LayerNorm has eps
1e-6, and the decoder normalises each projection before it concatenates them, shallowest first.
"""

from __future__ import annotations

import torch

from pipeline.checkpoints.common import Parsed, State, require, split_rows, transfer
from pipeline.checkpoints.nvlabs import count_blocks, variant_of
from pipeline.models.segformer import SegFormer, SegFormerConfig

NAME = "mmsegmentation SegFormer"

_UNUSED = ("auxiliary_head.",)
_EPS = 1e-6
_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.out": "attn.attn.out_proj",
    "attention.reduce": "attn.sr",
    "attention.reduce_norm": "attn.norm",
    "ffn.fc1": "ffn.layers.0",
    "ffn.dwconv": "ffn.layers.1",
    "ffn.fc2": "ffn.layers.4",  # 2 is the GELU, 3 and 5 are dropouts
}
_EMBED = {"proj": "projection", "norm": "norm"}
_CONV_BN = {"0": "conv", "1": "bn"}


def matches(keys: frozenset[str]) -> bool:
    return any(key.startswith("backbone.layers.0.0.projection.") for key in keys) and any(
        key.startswith("decode_head.fusion_conv.") for key in keys
    )


def load(state: State, window: tuple[int, int]) -> Parsed:
    """A SegFormer; `window` is not needed, since it has no position embedding.  Raises DeployError."""
    dims = tuple(require(state, f"backbone.layers.{i}.0.projection.weight", 4).shape[0] for i in range(4))
    depths = tuple(count_blocks(state, f"backbone.layers.{i}.1.") for i in range(4))
    variant = variant_of(dims, depths)
    config = SegFormerConfig(
        classes=require(state, "decode_head.conv_seg.weight", 4).shape[0],
        dims=dims,
        depths=depths,
        decoder_dim=require(state, "decode_head.fusion_conv.conv.weight", 4).shape[0],
        head="conv",
        eps_embed=_EPS,
        eps_reduce=_EPS,
        eps_block=_EPS,
        eps_stage=_EPS,
    )
    for stage, depth in enumerate(depths):
        for block in range(depth):
            for leaf in ("weight", "bias"):
                split_rows(state, f"backbone.layers.{stage}.1.{block}.attn.attn.in_proj_{leaf}", 3)
    with torch.device("meta"):
        model = SegFormer(config)
    transfer(model, state, _rename, _UNUSED)
    return Parsed(model, "segformer", variant, logits_stride=4)


def _rename(ours: str) -> str:
    stem, leaf = ours.rsplit(".", 1)
    match stem.split("."):
        case ["stages", stage, "embed", part]:
            return f"backbone.layers.{stage}.0.{_EMBED[part]}.{leaf}"
        case ["stages", stage, "norm"]:
            return f"backbone.layers.{stage}.2.{leaf}"
        case ["stages", stage, "blocks", block, "attention", "q" | "k" | "v" as part]:
            return f"backbone.layers.{stage}.1.{block}.attn.attn.in_proj_{leaf}#{'qkv'.index(part)}"
        case ["stages", stage, "blocks", block, *part]:
            return f"backbone.layers.{stage}.1.{block}.{_BLOCK['.'.join(part)]}.{leaf}"
        case ["head", "project", stage, part]:
            return f"decode_head.convs.{stage}.{_CONV_BN[part]}.{leaf}"
        case ["head", "fuse", part]:
            return f"decode_head.fusion_conv.{_CONV_BN[part]}.{leaf}"
        case ["head", "classify"]:
            return f"decode_head.conv_seg.{leaf}"
    raise KeyError(ours)
