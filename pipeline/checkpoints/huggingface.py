"""Hugging Face folders of SegformerForSemanticSegmentation: config.json, weights, preprocessor_config.json.

The keys come in two layouts.  The hub's, which ``save_pretrained`` writes, numbers blocks below
``segformer.encoder``; since transformers 5 a model holds them in memory below ``segformer.stages``, and that is what
``torch.save(model.state_dict())`` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engines.errors import DeployError
from pipeline.checkpoints.common import Parsed, require, some, transfer
from pipeline.checkpoints.files import read_json
from pipeline.checkpoints.folder import existing, read_folder
from pipeline.checkpoints.huggingface_config import (
    NAMING,
    config_from_json,
    label_fields,
)
from pipeline.checkpoints.processor import processor_fields
from pipeline.models.segformer import VARIANTS, SegFormer, SegFormerConfig

NAME = "Hugging Face SegFormer"
ARCHITECTURE = "SegformerForSemanticSegmentation"


@dataclass(frozen=True)
class Keys:
    """Where a key layout keeps things.  {s} is the stage, {b} the block; `inner` pairs our names in one with theirs."""

    embed: str
    norm: str
    block: str
    project: str
    inner: Mapping[str, str]


HUB = Keys(
    embed="segformer.encoder.patch_embeddings.{s}",
    norm="segformer.encoder.layer_norm.{s}",
    block="segformer.encoder.block.{s}.{b}",
    project="decode_head.linear_c.{s}.proj",
    inner={
        "norm1": "layer_norm_1",
        "norm2": "layer_norm_2",
        "attention.q": "attention.self.query",
        "attention.k": "attention.self.key",
        "attention.v": "attention.self.value",
        "attention.reduce": "attention.self.sr",
        "attention.reduce_norm": "attention.self.layer_norm",
        "attention.out": "attention.output.dense",
        "ffn.fc1": "mlp.dense1",
        "ffn.dwconv": "mlp.dwconv.dwconv",
        "ffn.fc2": "mlp.dense2",
    },
)
MEMORY = Keys(
    embed="segformer.stages.{s}.patch_embeddings",
    norm="segformer.stages.{s}.layer_norm",
    block="segformer.stages.{s}.blocks.{b}",
    project="decode_head.linear_projections.{s}.proj",
    inner={
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attention.q": "attention.q_proj",
        "attention.k": "attention.k_proj",
        "attention.v": "attention.v_proj",
        "attention.reduce": "attention.sequence_reduction.sequence_reduction",
        "attention.reduce_norm": "attention.sequence_reduction.layer_norm",
        "attention.out": "attention.o_proj",
        "ffn.fc1": "mlp.fc1",
        "ffn.dwconv": "mlp.dwconv.dwconv",
        "ffn.fc2": "mlp.fc2",
    },
)
_EMBED = {"proj": "proj", "norm": "layer_norm"}
_HEAD = {"fuse": "linear_fuse", "norm": "batch_norm", "classify": "classifier"}


def is_huggingface(keys: frozenset[str]) -> bool:
    """Whether these are weights from such a folder, which do not say enough without their config.json."""
    return any(key.startswith("segformer.") for key in keys)


def load_folder(folder: Path, named: bool = False) -> tuple[Parsed, dict[str, Any], list[Path]]:
    """The network in a folder, the `ModelSpec` fields that only the folder knows, and its weight files.

    named: whether the user names the classes, and the folder's names do not matter.
    Raises DeployError for a missing or damaged file, another architecture, an encoder without a decoder, a config
    that this SegFormer cannot reproduce, and weights that do not fit the config.
    """
    config = read_json(existing(folder, "config.json"))
    state, files = read_folder(folder)
    if not any(key.startswith("decode_head.") for key in state):
        raise DeployError(
            f"{folder}: got the weights of an encoder without a decode_head ({some(sorted(state))}), expected those of "
            f"{ARCHITECTURE}; use a checkpoint that was fine-tuned for segmentation"
        )
    classes = require(state, "decode_head.classifier.weight", 4).shape[0]
    labels, remarks = label_fields({**config, **(dict.fromkeys(NAMING) if named else {})}, classes)
    spec = labels | processor_fields(folder)
    shape = config_from_json(config, classes)
    keys = MEMORY if any(key.startswith("segformer.stages.") for key in state) else HUB
    with torch.device("meta"):
        model = SegFormer(shape)
    transfer(model, state, renamer(keys))
    return Parsed(model, "segformer", variant(shape), shape.strides[0], remarks=remarks), spec, files


def variant(shape: SegFormerConfig) -> str:
    for name, dims in VARIANTS.items():
        if dims == (shape.dims, shape.depths, shape.decoder_dim):
            return name
    return "custom"


def renamer(keys: Keys) -> Callable[[str], str]:
    def rename(ours: str) -> str:
        stem, leaf = ours.rsplit(".", 1)
        match stem.split("."):
            case ["stages", stage, "embed", part]:
                place = f"{keys.embed.format(s=stage)}.{_EMBED[part]}"
            case ["stages", stage, "norm"]:
                place = keys.norm.format(s=stage)
            case ["stages", stage, "blocks", block, *part]:
                place = f"{keys.block.format(s=stage, b=block)}.{keys.inner['.'.join(part)]}"
            case ["head", "project", stage]:
                place = keys.project.format(s=stage)
            case ["head", part]:
                place = f"decode_head.{_HEAD[part]}"
            case _:
                raise KeyError(ours)
        return f"{place}.{leaf}"

    return rename


def hub_key(ours: str) -> str:
    """The name that ``save_pretrained`` gives a parameter of our `SegFormer`."""
    return renamer(HUB)(ours)
