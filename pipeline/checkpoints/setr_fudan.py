"""Checkpoints of fudan-zvg/SETR, the paper's own code: Naive, PUP and MLA, on ViT and on DeiT.

Its DeiT models are ViT-Base ones: the distillation token is left behind when training starts.  What the weights
do not say is taken from the file's training config, or where there is none from the published ones: a two-convolution
head resizes once, after the classifier.

The encoder's half of the work is shared with `setr_mmseg`, which differs in names only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engines.errors import DeployError
from pipeline.checkpoints.common import Parsed, State, require, split_rows, transfer
from pipeline.checkpoints.training_config import TrainingConfig
from pipeline.models.setr import MLA_LEVELS, SETR, SETRConfig, mla_taps
from pipeline.models.vit import ViTConfig, resize_position

NAME = "fudan-zvg/SETR"
SIGNS: tuple[str, ...] = (
    "backbone.patch_embed.proj.",
    "backbone.blocks.0.attn.qkv.",
    "backbone.pos_embed",
    "decode_head.",
)
PUP_STAGES = 4
_QKV = re.compile(r"encoder\.blocks\.(\d+)\.attention\.([qkv])")


@dataclass(frozen=True)
class EncoderNames:
    """Where a layout keeps the ViT.  block holds ``{}`` for the index; inner pairs our names in it with theirs."""

    embed: str
    block: str
    qkv: str  # completed by "weight" and "bias"
    inner: tuple[tuple[str, str], ...]


ENCODER = EncoderNames(
    embed="backbone.patch_embed.proj",
    block="backbone.blocks.{}.",
    qkv="attn.qkv.",
    inner=(
        ("norm1", "norm1"),
        ("attention.out", "attn.proj"),
        ("norm2", "norm2"),
        ("fc1", "mlp.fc1"),
        ("fc2", "mlp.fc2"),
    ),
)


def matches(keys: frozenset[str]) -> bool:
    heads = {"decode_head.syncbn_fc_0.weight", "decode_head.mlahead.head2.0.weight"}
    return ENCODER.block.format(0) + "attn.qkv.weight" in keys and not heads.isdisjoint(keys)


def load(state: State, window: tuple[int, int], config: TrainingConfig | None = None) -> Parsed:
    """A SETR in eval mode for windows of (height, width) pixels.

    Raises DeployError on missing, unknown, misshapen or non-finite tensors, and on a window of broken patches.
    """
    config = config or TrainingConfig()
    decoder = _decoder(state)
    # The base class of the heads makes conv_seg, which SETR never calls; MLA drops the class token before block 0.
    unused = ("auxiliary_head.", "decode_head.conv_seg.", *(("backbone.cls_token",) if decoder == "mla" else ()))
    vit = encoder_config(state, ENCODER, window, decoder)
    vit = replace(vit, taps=_taps(vit, config, decoder), head_dim=head_dim_of(vit, config))
    shape = _config(state, vit, config, decoder)
    prepare_encoder(state, ENCODER, shape.vit)
    names = _mla_prefixes() if decoder == "mla" else _up_prefixes(shape.stages)
    return finish(shape, state, ENCODER, names, unused)


def head_dim_of(vit: ViTConfig, config: TrainingConfig) -> int | None:
    """The width of a head by the training config; None where it is not said.  Raises DeployError."""
    heads = config.lookup("model.backbone.num_heads")
    if heads is None:
        return None
    if not isinstance(heads, int) or heads < 1 or vit.dim % heads:
        raise DeployError(f"training config: backbone.num_heads: got {heads!r}, expected a divisor of {vit.dim}")
    return vit.dim // heads


def chosen(config: TrainingConfig, depth: int) -> int:
    """Which block the decoder reads, by the training config; the last where it does not say.  Raises DeployError."""
    index, outputs = config.lookup("model.decode_head.in_index", -1), config.lookup("model.backbone.out_indices")
    if not isinstance(outputs, list | tuple):
        outputs = range(depth) if outputs is None else [outputs if outputs != -1 else depth - 1]
    try:
        block = outputs[index]
    except (IndexError, TypeError):
        block = None
    if not isinstance(block, int) or not 0 <= block < depth:
        raise DeployError(
            f"training config: got decode_head.in_index {index!r} of backbone.out_indices {outputs!r}, expected one of "
            f"{depth} blocks"
        )
    return block


def _taps(vit: ViTConfig, config: TrainingConfig, decoder: str) -> tuple[int, ...]:
    if decoder != "mla":
        return (chosen(config, vit.depth),)
    return checked_taps(config.lookup("model.backbone.mla_index", vit.taps), vit, "backbone.mla_index")


def checked_taps(taps: object, vit: ViTConfig, place: str) -> tuple[int, ...]:
    """Four different blocks, ascending.  Raises DeployError."""
    whole = isinstance(taps, list | tuple) and all(isinstance(tap, int) and 0 <= tap < vit.depth for tap in taps)
    if isinstance(taps, list | tuple) and whole and len(taps) == MLA_LEVELS and list(taps) == sorted(set(taps)):
        return tuple(taps)
    raise DeployError(f"training config: {place}: got {taps!r}, expected {MLA_LEVELS} of {vit.depth} blocks, ascending")


def _decoder(state: State) -> str:
    if "decode_head.mlahead.head2.0.weight" in state:
        return "mla"
    return "pup" if "decode_head.conv_2.weight" in state else "naive"


def _config(state: State, vit: ViTConfig, config: TrainingConfig, decoder: str) -> SETRConfig:
    aligned = config.constant("decode_head.align_corners", False, False)
    end = vit.window if aligned else None
    eps_bn = config.constant("decode_head.norm_cfg.eps", 1e-5, 1e-5)
    if decoder == "mla":
        classify, branch = "decode_head.cls.weight", "decode_head.mlahead.head2.0.weight"
        return SETRConfig(
            vit,
            decoder,
            classes=require(state, classify, 4).shape[0],
            channels=require(state, branch, 4).shape[1],
            head_channels=require(state, branch, 4).shape[0],
            classify_kernel=require(state, classify, 4).shape[2],
            upsample=4,
            align_corners=True,
            full_size=end,
            eps_bn=eps_bn,
        )
    stages = PUP_STAGES if decoder == "pup" else 1
    config.require("decode_head.upsampling_method", "bilinear")
    layers = (PUP_STAGES,) if decoder == "pup" else (1, 2)
    if config.found:
        config.require("decode_head.num_upsampe_layer", *layers)
    twice = config.constant("decode_head.num_upsampe_layer", layers[0], layers[0]) == 2
    return SETRConfig(
        vit,
        decoder,
        classes=require(state, f"decode_head.conv_{stages}.weight", 4).shape[0],
        channels=require(state, "decode_head.conv_0.weight", 4).shape[0],
        stages=stages,
        kernel=require(state, "decode_head.conv_0.weight", 4).shape[2],
        upsample=4 if twice else 1,  # its own name for a first resize before the classifier
        align_corners=aligned,
        full_size=end,
        eps_bn=eps_bn,
    )


def _up_prefixes(stages: int) -> dict[str, str]:
    names = {"head.norm": "decode_head.norm", "head.classify": f"decode_head.conv_{stages}"}
    for stage in range(stages):
        names[f"head.stages.{stage}.0"] = f"decode_head.conv_{stage}"
        names[f"head.stages.{stage}.1"] = f"decode_head.syncbn_fc_{stage}"
    return names


def _mla_prefixes() -> dict[str, str]:
    names = {"head.classify": "decode_head.cls"}
    for level in range(MLA_LEVELS):
        path, branch = f"backbone.mla.mla_p{level + 2}", f"decode_head.mlahead.head{level + 2}"
        names[f"head.norms.{level}"] = f"backbone.norm_{level}"
        for part in range(2):  # convolution, BatchNorm
            names[f"head.project.{level}.{part}"] = f"{path}_1x1.{part}"
            names[f"head.fuse.{level}.{part}"] = f"{path}.{part}"
            for conv in range(2):  # a ReLU stands between the two pairs
                names[f"head.branches.{level}.{conv}.{part}"] = f"{branch}.{3 * conv + part}"
    return names


def encoder_config(state: State, names: EncoderNames, window: tuple[int, int], decoder: str) -> ViTConfig:
    """The ViT that the weights describe.  Raises DeployError where they do not, or where it is unsupported."""
    if "backbone.dist_token" in state:
        raise DeployError(
            "checkpoint: got backbone.dist_token, expected no distillation token; "
            "SETR on DeiT is trained without one, so this is not a published SETR model"
        )
    start = names.block.index("{}")
    depth = len({key[start:].split(".")[0] for key in state if key.startswith(names.block[:start])})
    fc1 = names.block.format(0) + dict(names.inner)["fc1"]
    return ViTConfig(
        window=window,
        dim=require(state, f"{names.embed}.weight", 4).shape[0],
        depth=depth,
        mlp_dim=require(state, f"{fc1}.weight", 2).shape[0],
        taps=mla_taps(depth) if decoder == "mla" else (depth - 1,),
        class_token=decoder != "mla",
    )


def encoder_prefixes(names: EncoderNames, vit: ViTConfig) -> dict[str, str]:
    """Our module and parameter names in the encoder, but for Q, K and V, paired with the layout's."""
    tokens = {"encoder.class_token": "backbone.cls_token"} if vit.class_token else {}
    prefixes = {"encoder.embed": names.embed, "encoder.position": "backbone.pos_embed", **tokens}
    for index in range(vit.depth):
        ours, theirs = f"encoder.blocks.{index}.", names.block.format(index)
        prefixes.update({ours + a: theirs + b for a, b in names.inner})
    return prefixes


def prepare_encoder(
    state: State, names: EncoderNames, vit: ViTConfig, trained: tuple[int, int] | None = None, mode: str = "bilinear"
) -> None:
    """Cuts the fused QKV tensors in three and makes the position embeddings fit the window.  In place.

    trained, mode: as `resize_position` takes them.
    """
    for index in range(vit.depth):
        for part in ("weight", "bias"):
            split_rows(state, names.block.format(index) + names.qkv + part, 3)
    position = resize_position(require(state, "backbone.pos_embed", 3).float(), vit.grid, trained, mode)
    # Both code bases drop the class token of MLA only after its position was added: that row goes with it.
    state["backbone.pos_embed"] = position[:, not vit.class_token :]


def finish(shape: SETRConfig, state: State, names: EncoderNames, head: dict[str, str], unused: Sequence[str]) -> Parsed:
    """The filled model; head pairs our module names in the decoder with the layout's.  Raises as `transfer` does."""
    with torch.device("meta"):
        model = SETR(shape)
    prefixes = encoder_prefixes(names, shape.vit) | head

    def rename(key: str) -> str:
        if key in prefixes:  # a bare parameter
            return prefixes[key]
        stem, leaf = key.rsplit(".", 1)
        block = _QKV.fullmatch(stem)
        if block:
            return f"{names.block.format(block[1])}{names.qkv}{leaf}#{'qkv'.index(block[2])}"
        return f"{prefixes[stem]}.{leaf}"

    transfer(model, state, rename, unused)
    return Parsed(model, "setr", shape.variant, shape.logits_stride)
