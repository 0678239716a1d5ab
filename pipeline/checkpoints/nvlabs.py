"""Checkpoints of NVlabs/SegFormer, the paper's own code: MiT with one packed K/V projection, and the MLP decoder.

Its LayerNorms have eps 1e-6 in the blocks and after each stage, but PyTorch's 1e-5 in the patch embeddings and on
the reduced keys.  Number of heads and strides leave no trace in the weights: the MiT variant tells them, and those of
another encoder are assumed to be MiT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engines.errors import DeployError
from pipeline.checkpoints.common import Parsed, State, require, split_rows, transfer
from pipeline.checkpoints.training_config import TrainingConfig
from pipeline.models.segformer import VARIANTS, SegFormer, SegFormerConfig

NAME = "NVlabs/SegFormer"
SIGNS: tuple[str, ...] = ("backbone.patch_embed1.", "backbone.block1.", "decode_head.linear_c1.",
                          "decode_head.linear_fuse.", "decode_head.linear_pred.")  # fmt: skip

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


def load(state: State, window: tuple[int, int], config: TrainingConfig | None = None) -> Parsed:
    """A SegFormer; `window` matters where its logits are resized with aligned corners.  Raises DeployError."""
    config = config or TrainingConfig()
    shape = encoder_shape(state, NAMES)
    shape = replace(
        shape,
        heads=heads_of(shape, config, (1, 2, 5, 8)),
        classes=require(state, "decode_head.linear_pred.weight", 4).shape[0],
        decoder_dim=require(state, "decode_head.linear_fuse.conv.weight", 4).shape[0],
        full_size=window if config.constant("decode_head.align_corners", False, False) else None,
        eps_bn=config.constant("decode_head.norm_cfg.eps", 1e-5, 1e-5),
    )
    for stage, depth in enumerate(shape.depths, 1):
        for block in range(depth):
            for leaf in ("weight", "bias"):
                split_rows(state, f"backbone.block{stage}.{block}.attn.kv.{leaf}", 2)
    with torch.device("meta"):
        model = SegFormer(shape)
    transfer(model, state, _rename, _UNUSED)
    return Parsed(model, "segformer", variant_of(shape.dims, shape.depths), stride_of(shape))


@dataclass(frozen=True)
class MiTNames:
    """Where a layout keeps MiT; {i} stands for the stage, counted from `first`.

    reduce, reduce_norm: how the names of the kernel that reduces a stage's keys, and of its LayerNorm's weight, end.
    """

    first: int
    embed: str
    blocks: str
    fc1: str
    reduce: str = ".attn.sr.weight"
    reduce_norm: str = ".attn.norm.weight"


NAMES = MiTNames(
    1, "backbone.patch_embed{i}.proj.weight", "backbone.block{i}.", "backbone.block{i}.0.mlp.fc1.weight",
)  # fmt: skip


def encoder_shape(state: State, names: MiTNames) -> SegFormerConfig:
    """What the tensors say of the encoder: widths, depths, reductions, expansion and patches.  Raises DeployError."""
    stages = range(names.first, names.first + 4)
    embeds = [require(state, names.embed.format(i=i), 4).shape for i in stages]
    dims = tuple(shape[0] for shape in embeds)
    hidden = [require(state, names.fc1.format(i=i)).shape[0] for i in stages]
    return SegFormerConfig(
        dims=dims,
        depths=tuple(count_blocks(state, names.blocks.format(i=i)) for i in stages),
        reductions=tuple(_reduction(state, names, i) for i in stages),
        mlp_ratios=tuple(max(1, width // dim) for width, dim in zip(hidden, dims, strict=True)),
        patch_sizes=tuple(shape[-1] for shape in embeds),
    )


def _reduction(state: State, names: MiTNames, i: int) -> int:
    """By the kernel that reduces a stage's keys; MiT's where that is missing but its LayerNorm is there."""
    below = [key for key in state if key.startswith(names.blocks.format(i=i))]
    kernel = next((key for key in below if key.endswith(names.reduce)), None)
    if kernel is not None:
        return state[kernel].shape[-1]
    normed = any(key.endswith(names.reduce_norm) for key in below)
    return SegFormerConfig.reductions[i - names.first] if normed else 1


def heads_of(shape: SegFormerConfig, config: TrainingConfig, published: tuple[int, ...]) -> tuple[int, ...]:
    """The number of attention heads by stage.  Raises DeployError where a width is no multiple of it."""
    default = SegFormerConfig.heads
    known = shape.dims in {dims for dims, _, _ in VARIANTS.values()}
    if not known or config.lookup("model.backbone.num_heads") is not None:
        default = config.constant("backbone.num_heads", published, published)
    if len(default) != len(shape.dims) or any(dim % heads for dim, heads in zip(shape.dims, default, strict=True)):
        raise DeployError(
            f"SegFormer: got stages of width {shape.dims} with {default} attention heads, expected multiples; the "
            "number of heads is not in the weights, load this encoder through a Python factory"
        )
    return default


def stride_of(shape: SegFormerConfig) -> int:
    return shape.strides[0] if shape.full_size is None else 1


def variant_of(dims: tuple[int, ...], depths: tuple[int, ...]) -> str:
    """``b0`` to ``b5``, by the encoder, or ``custom``; the decoder's width follows from its weights."""
    return next(
        (name for name, known in VARIANTS.items() if (dims, depths) == known[:2]),
        "custom",
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
