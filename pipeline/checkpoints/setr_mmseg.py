"""Checkpoints of mmsegmentation's SETR, 0.17 to 1.x: SETRUPHead (Naive, PUP) and MLANeck with SETRMLAHead.

They differ from the paper's code: Naive and MLA upsample x4 inside the head, before the classifier, and the frame
resizes x4 again; MLA's upsampling has half-pixel centres, a 1x1 classifier, and lists its levels deepest first.
What the weights do not say is taken from the file's training config, or where there is none from the published ones:
one convolution upsamples x4, each of four x2; LayerNorm eps is 1e-6; the encoder has no final norm (a checkpoint with
one, `backbone.ln1`, is refused as unknown).  Position embeddings are kept as they are where their count fits the
window, whatever the shapes of the two grids.
Since 1.0 the patch embedding has no bias (`patch_bias=False`); until then it had.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from engines.errors import DeployError
from pipeline.checkpoints.common import Parsed, State, require
from pipeline.checkpoints.setr_fudan import (
    EncoderNames,
    checked_taps,
    chosen,
    encoder_config,
    finish,
    head_dim_of,
    prepare_encoder,
)
from pipeline.checkpoints.training_config import TrainingConfig
from pipeline.models.setr import MLA_LEVELS, SETRConfig
from pipeline.models.vit import PATCH, ViTConfig

NAME = "mmsegmentation SETR"
SIGNS: tuple[str, ...] = ("backbone.patch_embed.projection.", "backbone.layers.0.attn.attn.", "backbone.pos_embed",
         "decode_head.up_convs.0.", "decode_head.conv_seg.")  # fmt: skip
UP_SCALE = {1: 4, 4: 2}  # of the published heads, by their convolutions

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


def load(state: State, window: tuple[int, int], config: TrainingConfig | None = None) -> Parsed:
    """A SETR in eval mode for windows of (height, width) pixels.

    Raises DeployError on missing, unknown, misshapen or non-finite tensors, on a window of broken patches, and on
    constants of the training config that this SETR does not have.
    """
    config = config or TrainingConfig()
    decoder = _decoder(state, config)
    _complete_bias(state)
    # MLA drops the class token before the first block.
    unused = ("auxiliary_head.", "backbone.cls_token") if decoder == "mla" else ("auxiliary_head.",)
    vit = _encoder(encoder_config(state, ENCODER, window, decoder), config, decoder)
    unused = unused if vit.class_token else ("auxiliary_head.", "backbone.cls_token")
    shape = _config(state, vit, config, decoder)
    trained, mode = _position(state, vit, config)
    prepare_encoder(state, ENCODER, shape.vit, trained, mode)
    if decoder == "mla":
        _reverse_levels(state, shape.head_channels)
    names = mla_prefixes() if decoder == "mla" else up_prefixes(shape.stages)
    return finish(shape, state, ENCODER, names, unused)


def _encoder(vit: ViTConfig, config: TrainingConfig, decoder: str) -> ViTConfig:
    """With what only the training config says.  Raises DeployError for what this ViT cannot do."""
    for flag in ("final_norm", "pre_norm", "patch_norm", "output_cls_token"):
        config.require(f"backbone.{flag}", False)
    config.require("backbone.act_cfg.type", "GELU")
    token = config.constant("backbone.with_cls_token", True, decoder != "mla")
    taps = vit.taps
    if decoder != "mla":
        taps = (chosen(config, vit.depth),)
    else:
        config.require("decode_head.in_index", (0, 1, 2, 3))
        taps = checked_taps(config.lookup("model.backbone.out_indices", vit.taps), vit, "backbone.out_indices")
    eps = config.constant("backbone.norm_cfg.eps", 1e-5, 1e-6)
    return replace(vit, class_token=token, taps=taps, eps=eps, head_dim=head_dim_of(vit, config))


def _position(state: State, vit: ViTConfig, config: TrainingConfig) -> tuple[tuple[int, int] | None, str]:
    """The grid that the position embeddings were trained on, None for a square one; and how they are resized."""
    count = require(state, "backbone.pos_embed", 3).shape[1] - 1
    if count == vit.grid[0] * vit.grid[1]:
        return vit.grid, "bilinear"
    if not config.found:
        config.assumed.append("a square grid of position embeddings")
    mode = config.constant("backbone.interpolate_mode", "bicubic", "bilinear")
    config.require("backbone.interpolate_mode", "bicubic", "bilinear")
    size = config.lookup("model.backbone.img_size")
    sides = (
        [size, size]
        if isinstance(size, int)
        else list(size) * (3 - len(size))
        if isinstance(size, list | tuple)
        else []
    )
    if len(sides) == 2 and all(isinstance(side, int) for side in sides):
        return (sides[0] // PATCH, sides[1] // PATCH), mode
    return None, mode


def _complete_bias(state: State) -> None:
    """A patch embedding without a bias, as 1.x trains it, is one with zeros.  In place."""
    weight = require(state, f"{ENCODER.embed}.weight", 4)
    state.setdefault(f"{ENCODER.embed}.bias", weight.new_zeros(weight.shape[0]))


def _stages(state: State) -> int:
    count = 0
    while f"decode_head.up_convs.{count}.0.conv.weight" in state:
        count += 1
    return count


def _decoder(state: State, config: TrainingConfig) -> str:
    if "neck.mla.channel_proj.0.conv.weight" in state:
        return "mla"
    stages = _stages(state)
    if stages not in UP_SCALE and not config.found:
        raise DeployError(
            f"checkpoint: got {stages} convolutions in decode_head.up_convs, expected 1 (Naive) or 4 (PUP); "
            "the weights do not say by how much others upsample"
        )
    return "naive" if stages == 1 else "pup"


def _config(state: State, vit: ViTConfig, config: TrainingConfig, decoder: str) -> SETRConfig:
    first, classes = "decode_head.up_convs.0.0.conv.weight", require(state, "decode_head.conv_seg.weight", 4).shape[0]
    config.require("decode_head.act_cfg.type", "ReLU")
    aligned = config.constant("decode_head.align_corners", False, False)
    stages = 1 if decoder == "mla" else _stages(state)
    scale = config.constant("decode_head.up_scale", 4, UP_SCALE.get(stages, 0))
    whole = scale**stages == PATCH  # the frame's own resize then has nothing left to do
    shape = SETRConfig(
        vit,
        decoder,
        classes,
        channels=require(state, first, 4).shape[1 if decoder == "mla" else 0],
        head_channels=require(state, first, 4).shape[0],
        stages=stages,
        between=scale,
        kernel=require(state, first, 4).shape[2],
        conv_bias=False,
        upsample=1 if whole and not aligned else scale,  # the last resize is left to the runtime where it can be
        align_corners=aligned,
        full_size=vit.window if aligned and not whole else None,
        eps_norm=_eps(config, "neck" if decoder == "mla" else "decode_head"),
        eps_bn=config.constant("decode_head.norm_cfg.eps", 1e-5, 1e-5),
    )
    if decoder == "mla" and config.lookup("model.neck.norm_cfg.eps", 1e-5) != shape.eps_bn:
        raise DeployError("training config: neck.norm_cfg.eps: got another than the decode_head's, expected the same")
    return shape


def _eps(config: TrainingConfig, part: str) -> float:
    """Of the LayerNorm before the decoder: 1e-6 by default, PyTorch's where the config describes it without one."""
    default = 1e-6 if config.lookup(f"model.{part}.norm_layer") is None else 1e-5
    return config.constant(f"{part}.norm_layer.eps", default, 1e-6)


def up_prefixes(stages: int) -> dict[str, str]:
    names = {"head.norm": "decode_head.norm", "head.classify": "decode_head.conv_seg"}
    for stage in range(stages):
        names.update(_conv_bn(f"head.stages.{stage}", f"decode_head.up_convs.{stage}.0"))
    return names


def mla_prefixes() -> dict[str, str]:
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
