"""SegFormer checkpoints of mmsegmentation 0.x and 1.x: MiT on nn.MultiheadAttention, and a decoder of its own.

Against NVlabs: Q, K and V are packed in ``in_proj``, the Mix-FFN consists of convolutions, every LayerNorm has eps
1e-6, and the decoder normalises each projection before it concatenates them, shallowest first.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.checkpoints.common import Parsed, State, require, split_rows, transfer
from pipeline.checkpoints.nvlabs import MiTNames, encoder_shape, heads_of, stride_of, variant_of
from pipeline.checkpoints.training_config import TrainingConfig
from pipeline.models.segformer import SegFormer, SegFormerConfig

NAME = "mmsegmentation SegFormer"
SIGNS: tuple[str, ...] = ("backbone.layers.0.0.projection.", "backbone.layers.0.1.0.attn.attn.", "decode_head.convs.0.",
         "decode_head.fusion_conv.", "decode_head.conv_seg.")  # fmt: skip

_UNUSED = ("auxiliary_head.",)
_EPS = 1e-6
_MODES = ("bilinear", "bicubic", "nearest")
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


def load(state: State, window: tuple[int, int], config: TrainingConfig | None = None) -> Parsed:
    """A SegFormer; `window` matters where its logits are resized with aligned corners.  Raises DeployError."""
    config = config or TrainingConfig()
    shape = _constants(encoder_shape(state, NAMES), config)
    aligned = config.constant("decode_head.align_corners", False, False)
    shape = replace(
        shape,
        classes=require(state, "decode_head.conv_seg.weight", 4).shape[0],
        decoder_dim=require(state, "decode_head.fusion_conv.conv.weight", 4).shape[0],
        head="conv",
        align_corners=aligned,
        full_size=window if aligned else None,
    )
    for stage, depth in enumerate(shape.depths):
        for block in range(depth):
            for leaf in ("weight", "bias"):
                split_rows(state, f"backbone.layers.{stage}.1.{block}.attn.attn.in_proj_{leaf}", 3)
    with torch.device("meta"):
        model = SegFormer(shape)
    transfer(model, state, _rename, _UNUSED)
    return Parsed(model, "segformer", variant_of(shape.dims, shape.depths), stride_of(shape))


NAMES = MiTNames(
    0, "backbone.layers.{i}.0.projection.weight", "backbone.layers.{i}.1.",
    "backbone.layers.{i}.1.0.ffn.layers.0.weight",
)  # fmt: skip


def _constants(shape: SegFormerConfig, config: TrainingConfig) -> SegFormerConfig:
    """With what only the training config says.  Raises DeployError for what this SegFormer cannot do."""
    config.require("backbone.out_indices", (0, 1, 2, 3))
    config.require("decode_head.in_index", (0, 1, 2, 3))
    config.require("decode_head.interpolate_mode", *_MODES)
    for part, act in (("backbone", "GELU"), ("decode_head", "ReLU")):
        config.require(f"{part}.act_cfg.type", act)
    eps = config.constant(
        "backbone.norm_cfg.eps", _EPS if config.lookup("model.backbone.norm_cfg") is None else 1e-5, _EPS
    )
    return replace(
        shape,
        heads=heads_of(shape, config, tuple(dim // shape.dims[0] for dim in shape.dims)),
        strides=config.constant("backbone.strides", SegFormerConfig.strides, SegFormerConfig.strides),
        interpolate=config.constant("decode_head.interpolate_mode", "bilinear", "bilinear"),
        eps_embed=eps, eps_reduce=eps, eps_block=eps, eps_stage=eps,
        eps_bn=config.constant("decode_head.norm_cfg.eps", 1e-5, 1e-5),
    )  # fmt: skip


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
