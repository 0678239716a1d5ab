"""Checkpoints of mmsegmentation's SETR, 0.17 to 1.x: SETRUPHead (Naive, PUP) and MLANeck with SETRMLAHead.

They differ from the paper's code: Naive and MLA upsample x4 inside the head, before the classifier, and the frame
resizes x4 again; MLA's upsampling has half-pixel centres, a 1x1 classifier, and lists its levels deepest first.
What the weights do not say is taken from the published configs: one convolution upsamples x4, each of four x2;
LayerNorm eps is 1e-6; the encoder has no final norm (a checkpoint with one, `backbone.ln1`, is refused as unknown).
Since 1.0 the patch embedding has no bias (`patch_bias=False`); until then it had.
"""

from __future__ import annotations

import torch

from engines.errors import DeployError
from pipeline.checkpoints.common import Parsed, State, require
from pipeline.checkpoints.setr_fudan import (
    EncoderNames,
    encoder_config,
    finish,
    prepare_encoder,
)
from pipeline.models.setr import MLA_LEVELS, SETRConfig
from pipeline.models.vit import ViTConfig

NAME = "mmsegmentation SETR"
UPSAMPLE = {1: 4, 4: 1}  # stages: in-graph factor at the classifier; PUP's last x2 is left to the runtime

ENCODER = EncoderNames(
    embed="backbone.patch_embed.projection",
    block="backbone.layers.{}.",
    qkv="attn.attn.in_proj_",
    inner=(
        ("norm1", "ln1"),
        ("attention.out", "attn.attn.out_proj"),
        ("norm2", "ln2"),
        ("fc1", "ffn.layers.0.0"),
        ("fc2", "ffn.layers.1"),
    ),
)


def matches(keys: frozenset[str]) -> bool:
    return {"backbone.layers.0.attn.attn.in_proj_weight", "decode_head.up_convs.0.0.conv.weight"} <= keys


def load(state: State, window: tuple[int, int]) -> Parsed:
    """A SETR in eval mode for windows of (height, width) pixels.

    Raises DeployError on missing, unknown, misshapen or non-finite tensors, on a window of broken patches, and on
    a number of convolutions that no published config has.
    """
    decoder = _decoder(state)
    _complete_bias(state)
    # MLA drops the class token before the first block.
    unused = ("auxiliary_head.", "backbone.cls_token") if decoder == "mla" else ("auxiliary_head.",)
    config = _config(state, encoder_config(state, ENCODER, window, decoder), decoder)
    prepare_encoder(state, ENCODER, config.vit)
    if decoder == "mla":
        _reverse_levels(state, config.head_channels)
    return finish(config, state, ENCODER, _mla_prefixes() if decoder == "mla" else _up_prefixes(config.stages), unused)


def _complete_bias(state: State) -> None:
    """A patch embedding without a bias, as 1.x trains it, is one with zeros.  In place."""
    weight = require(state, f"{ENCODER.embed}.weight", 4)
    state.setdefault(f"{ENCODER.embed}.bias", weight.new_zeros(weight.shape[0]))


def _stages(state: State) -> int:
    count = 0
    while f"decode_head.up_convs.{count}.0.conv.weight" in state:
        count += 1
    return count


def _decoder(state: State) -> str:
    if "neck.mla.channel_proj.0.conv.weight" in state:
        return "mla"
    stages = _stages(state)
    if stages not in UPSAMPLE:
        raise DeployError(
            f"checkpoint: got {stages} convolutions in decode_head.up_convs, expected 1 (Naive) or 4 (PUP); "
            "the weights do not say by how much others upsample"
        )
    return "naive" if stages == 1 else "pup"


def _config(state: State, vit: ViTConfig, decoder: str) -> SETRConfig:
    first, classes = "decode_head.up_convs.0.0.conv.weight", require(state, "decode_head.conv_seg.weight", 4).shape[0]
    if decoder == "mla":
        return SETRConfig(
            vit,
            decoder,
            classes,
            channels=require(state, first, 4).shape[1],
            head_channels=require(state, first, 4).shape[0],
            upsample=4,
        )
    stages = _stages(state)
    return SETRConfig(
        vit,
        decoder,
        classes,
        channels=require(state, first, 4).shape[0],
        stages=stages,
        kernel=require(state, first, 4).shape[2],
        conv_bias=False,
        upsample=UPSAMPLE[stages],
    )


def _up_prefixes(stages: int) -> dict[str, str]:
    names = {"head.norm": "decode_head.norm", "head.classify": "decode_head.conv_seg"}
    for stage in range(stages):
        names.update(_conv_bn(f"head.stages.{stage}", f"decode_head.up_convs.{stage}.0"))
    return names


def _mla_prefixes() -> dict[str, str]:
    names = {"head.classify": "decode_head.conv_seg"}
    for level in range(MLA_LEVELS):
        deepest_first = MLA_LEVELS - 1 - level  # the neck turns its list over between these two
        names[f"head.norms.{level}"] = f"neck.norm.{level}"
        names.update(_conv_bn(f"head.project.{level}", f"neck.mla.channel_proj.{level}"))
        names.update(_conv_bn(f"head.fuse.{level}", f"neck.mla.feat_extract.{deepest_first}"))
        for conv in range(2):
            names.update(_conv_bn(f"head.branches.{level}.{conv}", f"decode_head.up_convs.{deepest_first}.{conv}"))
    return names


def _conv_bn(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.0": f"{theirs}.conv", f"{ours}.1": f"{theirs}.bn"}


def _reverse_levels(state: State, width: int) -> None:
    """Reorders the classifier's input channels to meet levels that come shallowest first.  In place."""
    key = "decode_head.conv_seg.weight"
    if state[key].shape[1] == MLA_LEVELS * width:  # else left for the transfer to report
        state[key] = torch.cat(state[key].chunk(MLA_LEVELS, 1)[::-1], 1)
