"""Write a SegFormer of ours in the Hugging Face hub layout, fp16, and read it back to train on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calib.data.scenes import CLASSES, PALETTE
from engines.spec import IMAGENET_MEAN, IMAGENET_STD
from pipeline.checkpoints.huggingface import hub_key
from pipeline.models.segformer import SegFormer


def save_hugging_face(model: SegFormer, folder: Path) -> None:
    """config.json, preprocessor_config.json and model.safetensors, readable by transformers and by our loader."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for key, value in hub_state(model).items():
        state[key] = (value.half() if value.is_floating_point() else value).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(model), indent=1) + "\n")
    processor = {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in IMAGENET_MEAN],
        "image_std": [value / 255 for value in IMAGENET_STD],
        "do_reduce_labels": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def load_hugging_face(model: SegFormer, folder: Path) -> None:
    """Fill `model` from a folder that `save_hugging_face` wrote for the same configuration."""
    state = load_file(folder / "model.safetensors")
    # BatchNorm's step counter is not a weight: some writers leave it out.
    own = {key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    filled = {key: state[hub_key(key)].reshape(value.shape).to(value) for key, value in own.items()}
    model.load_state_dict(model.state_dict() | filled)


def hub_state(model: SegFormer) -> dict[str, Tensor]:
    """Our parameters under the names that the hub's SegFormer checkpoints use."""
    state = {}
    for ours, value in model.state_dict().items():
        state[hub_key(ours)] = value[:, :, 0, 0] if ours.startswith("head.project") and value.ndim == 4 else value
    return state


def _config(model: SegFormer) -> dict[str, object]:
    config = model.config
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "num_channels": 3,
        "num_encoder_blocks": len(config.dims),
        "depths": list(config.depths),
        "hidden_sizes": list(config.dims),
        "num_attention_heads": list(config.heads),
        "sr_ratios": list(config.reductions),
        "mlp_ratios": list(config.mlp_ratios),
        "patch_sizes": list(config.patch_sizes),
        "strides": list(config.strides),
        "decoder_hidden_size": config.decoder_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": config.eps_block,
        "reshape_last_stage": True,
        "semantic_loss_ignore_index": 255,
        "dtype": str(torch.float16).removeprefix("torch."),
        "id2label": {str(i): name for i, name in enumerate(CLASSES)},
        "label2id": {name: i for i, name in enumerate(CLASSES)},
        "palette": [list(colour) for colour in PALETTE],
    }
