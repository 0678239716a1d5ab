"""The weights of transformers' SegFormer without a config.json, as a training of one's own saves them (Lightning, ...).

What leaves no trace in the tensors is what transformers takes where nobody says otherwise: its LayerNorms' eps, GELU,
and MiT's heads and strides.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.checkpoints.common import Parsed, State, require, transfer
from pipeline.checkpoints.huggingface import HUB, MEMORY, is_huggingface, renamer, variant
from pipeline.checkpoints.huggingface_config import config_from_json
from pipeline.checkpoints.nvlabs import MiTNames, encoder_shape, heads_of
from pipeline.checkpoints.training_config import TrainingConfig
from pipeline.models.segformer import SegFormer

NAME = "Hugging Face SegFormer without its config.json"
SIGNS: tuple[str, ...] = ("segformer.", "decode_head.linear_fuse.", "decode_head.classifier.")


def matches(keys: frozenset[str]) -> bool:
    return is_huggingface(keys) and "decode_head.classifier.weight" in keys


def load(state: State, window: tuple[int, int], config: TrainingConfig | None = None) -> Parsed:
    """A SegFormer for windows of any size.  Raises DeployError."""
    config = config or TrainingConfig()
    keys = MEMORY if any(key.startswith("segformer.stages.") for key in state) else HUB
    block, inner = keys.block.replace("{s}", "{i}"), keys.inner
    names = MiTNames(
        0, f"{keys.embed.replace('{s}', '{i}')}.proj.weight", block.removesuffix("{b}"),
        f"{block.format(i='{i}', b=0)}.{inner['ffn.fc1']}.weight",
        reduce=f".{inner['attention.reduce']}.weight", reduce_norm=f".{inner['attention.reduce_norm']}.weight",
    )  # fmt: skip
    found = encoder_shape(state, names)
    classes = require(state, "decode_head.classifier.weight", 4).shape[0]
    taken = config_from_json({}, classes)  # transformers' own where no config says otherwise
    shape = replace(
        taken, dims=found.dims, depths=found.depths, reductions=found.reductions, mlp_ratios=found.mlp_ratios,
        patch_sizes=found.patch_sizes, heads=heads_of(found, config, (1, 2, 5, 8)),
        decoder_dim=require(state, "decode_head.linear_fuse.weight", 4).shape[0],
    )  # fmt: skip
    with torch.device("meta"):
        model = SegFormer(shape)
    transfer(model, state, renamer(keys))
    said = "no config.json: assumed the eps, GELU, strides and preprocessing of transformers"
    return Parsed(model, "segformer", variant(shape), shape.strides[0], remarks=(said,))
