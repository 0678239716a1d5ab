"""Write a SETR of ours as a checkpoint of mmsegmentation 1.x, fp16, and read it back to train on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from calib.data.scenes import CLASSES, PALETTE
from engines.spec import IMAGENET_MEAN, IMAGENET_STD
from pipeline.checkpoints import load_model
from pipeline.checkpoints.setr_fudan import encoder_prefixes
from pipeline.checkpoints.setr_mmseg import ENCODER, mla_prefixes, up_prefixes
from pipeline.models.setr import MLA_LEVELS, SETR, SETRConfig
from pipeline.models.vit import PATCH


def save_mmseg(model: SETR, path: Path) -> None:
    """A .pth with `state_dict` and `meta`, as mmengine's Runner publishes one, its config included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {
        key: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for key, value in mmseg_state(model).items()
    }
    data = {"classes": list(CLASSES), "palette": [list(colour) for colour in PALETTE]}
    torch.save({"state_dict": state, "meta": {"dataset_meta": data, "cfg": config_text(model.config)}}, path)


def load_mmseg(model: SETR, path: Path) -> None:
    """Fill `model` from a file that `save_mmseg` wrote for the same configuration."""
    model.load_state_dict(load_model(str(path), window=model.config.vit.window).module.state_dict())


def config_text(config: SETRConfig) -> str:
    """The part of a training config that the weights do not say, in mmsegmentation's words."""
    vit, mla = config.vit, config.decoder == "mla"
    backbone: dict[str, object] = {
        "type": "VisionTransformer", "img_size": vit.window, "patch_size": PATCH, "embed_dims": vit.dim,
        "num_layers": vit.depth, "num_heads": vit.heads, "mlp_ratio": vit.mlp_dim // vit.dim,
        "out_indices": vit.taps if mla else vit.depth - 1, "with_cls_token": vit.class_token, "qkv_bias": True,
        "interpolate_mode": "bilinear", "norm_cfg": {"type": "LN", "eps": vit.eps, "requires_grad": True},
    }  # fmt: skip
    head: dict[str, object] = {
        "type": "SETRMLAHead" if mla else "SETRUPHead", "num_classes": config.classes, "channels": config.channels,
        "kernel_size": config.kernel, "num_convs": config.stages, "up_scale": 4 if config.stages == 1 else 2,
        "align_corners": False, "norm_cfg": {"type": "BN", "requires_grad": True},
    }  # fmt: skip
    if mla:
        head |= {"mla_channels": config.head_channels, "in_index": (0, 1, 2, 3)}
        del head["kernel_size"], head["num_convs"]
    normalise = {"type": "SegDataPreProcessor", "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "bgr_to_rgb": True}
    model = {"type": "EncoderDecoder", "data_preprocessor": normalise, "backbone": backbone, "decode_head": head}
    return f"model = {model!r}\n"


def mmseg_state(model: SETR) -> dict[str, Tensor]:
    """Our parameters and buffers under mmsegmentation's names."""
    config = model.config
    head = mla_prefixes() if config.decoder == "mla" else up_prefixes(config.stages)
    prefixes = encoder_prefixes(ENCODER, config.vit) | head
    own = model.state_dict()
    state: dict[str, Tensor] = {}
    for key, value in own.items():
        stem, leaf = key.rsplit(".", 1)
        if key in prefixes:
            state[prefixes[key]] = value
        elif stem in prefixes:
            state[f"{prefixes[stem]}.{leaf}"] = value
    for index in range(config.vit.depth):
        for leaf in ("weight", "bias"):
            parts = [own[f"encoder.blocks.{index}.attention.{part}.{leaf}"] for part in "qkv"]
            state[f"{ENCODER.block.format(index)}{ENCODER.qkv}{leaf}"] = torch.cat(parts)
    if (
        config.decoder == "mla"
    ):  # which drops the class token after its position was added, and lists levels deepest first
        token = state["backbone.pos_embed"].new_zeros(1, 1, config.vit.dim)
        state["backbone.cls_token"] = token
        state["backbone.pos_embed"] = torch.cat((token, state["backbone.pos_embed"]), 1)
        classify = state["decode_head.conv_seg.weight"]
        state["decode_head.conv_seg.weight"] = torch.cat(classify.chunk(MLA_LEVELS, 1)[::-1], 1)
    return state
