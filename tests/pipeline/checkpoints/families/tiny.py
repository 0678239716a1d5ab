"""The smallest network of each family that has all of its parts, with random weights, as transformers makes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.pipeline.checkpoints.published import transformers

SIDE, QUERIES = 64, 6
LABELS = {0: "road", 1: "car", 2: "sky", 3: "tree", 4: "wall"}
_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": SIDE, "patch_size": 16}  # fmt: skip
_EOMT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16,
         "num_queries": QUERIES, "num_blocks": 2, "num_upscale_blocks": 1}  # fmt: skip


def _swin() -> Any:
    return transformers().SwinConfig(
        embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, image_size=SIDE,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _upernet(backbone: Any) -> Any:
    return transformers().UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, id2label=LABELS
    )


def _convnext() -> Any:
    return transformers().ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
    )


def _maskformer() -> Any:
    library = transformers()
    decoder = library.DetrConfig(
        d_model=32, decoder_layers=1, encoder_layers=1, decoder_attention_heads=2, encoder_attention_heads=2,
        decoder_ffn_dim=32, encoder_ffn_dim=32, num_queries=QUERIES,
    )  # fmt: skip
    return library.MaskFormerConfig(
        backbone_config=_swin(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, id2label=LABELS
    )


def _mask2former() -> Any:
    return transformers().Mask2FormerConfig(
        backbone_config=_swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=QUERIES,
        id2label=LABELS,
    )  # fmt: skip


def _sapiens2() -> Any:
    head = {"upsample_out_channels": [16, 16], "upsample_kernel_size": 4, "conv_out_channels": [16]}
    return transformers().Sapiens2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        num_register_tokens=1, num_first_full_attention_layers=1, num_last_full_attention_layers=1,
        num_key_value_attention_heads=1, id2label=LABELS, head_config=head,
    )  # fmt: skip


def _oneformer() -> Any:
    return transformers().OneFormerConfig(
        backbone_config=_swin(), id2label=LABELS, hidden_dim=32, num_queries=QUERIES, conv_dim=32, mask_dim=32,
        dim_feedforward=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
        task_seq_len=24, query_dec_layers=1,
    )  # fmt: skip


DENSE: dict[str, Callable[[], Any]] = {
    "upernet-swin": lambda: _upernet(_swin()),
    "upernet-convnext": lambda: _upernet(_convnext()),
    "dpt": lambda: transformers().DPTConfig(**_VIT, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
                                            fusion_hidden_size=16, id2label=LABELS),
    "beit": lambda: transformers().BeitConfig(**_VIT, out_indices=[1, 2, 3, 4], pool_scales=[1, 2], id2label=LABELS,
                                              use_relative_position_bias=True),
    "data2vec-vision": lambda: transformers().Data2VecVisionConfig(**_VIT, out_indices=[1, 2, 3, 4], pool_scales=[1, 2],
                                                                   id2label=LABELS),
    "mobilevit": lambda: transformers().MobileViTConfig(
        image_size=SIDE, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], num_attention_heads=2,
        id2label=LABELS, aspp_out_channels=16),
    "mobilevitv2": lambda: transformers().MobileViTV2Config(
        image_size=SIDE, width_multiplier=0.25, aspp_out_channels=16, base_attn_unit_dims=[32, 48, 64],
        n_attn_blocks=[1, 1, 1], id2label=LABELS),
    "mobilenet_v2": lambda: transformers().MobileNetV2Config(image_size=SIDE, depth_multiplier=0.35, output_stride=8,
                                                             id2label=LABELS),
    "sapiens2": _sapiens2,
}  # fmt: skip
MASKS: dict[str, Callable[[], Any]] = {
    "maskformer": _maskformer,
    "mask2former": _mask2former,
    "eomt": lambda: transformers().EomtConfig(**_EOMT, num_register_tokens=1, id2label=LABELS),
    "eomt_dinov3": lambda: transformers().EomtDinov3Config(**_EOMT, intermediate_size=64, id2label=LABELS),
    "oneformer": _oneformer,
}


def make(name: str, folder: Path) -> Any:
    """The network, in eval mode, and its folder as ``save_pretrained`` writes it."""
    library = transformers()
    automatic = library.AutoModelForUniversalSegmentation if name in MASKS else library.AutoModelForSemanticSegmentation
    torch.manual_seed(0)  # what is only added to would be other numbers after other tests
    model = automatic.from_config((MASKS | DENSE)[name]()).eval()
    _randomise(model)
    if name.startswith("eomt"):
        model.attn_mask_probs.zero_()  # as annealing leaves it
    library.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if name == "oneformer":
        letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
        (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return model


def _randomise(model: nn.Module) -> None:
    """Statistics and weights under which activations keep their size, and no term can be forgotten unnoticed."""
    random = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.is_floating_point() and tensor.ndim < 2:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=random) * tensor[0].numel() ** -0.5)


def own(name: str, model: Any, image: torch.Tensor, folder: Path) -> torch.Tensor:
    """What transformers computes: logits, or per-pixel scores by its own answer's masks and classes."""
    more = {}
    if name == "oneformer":
        tokenizer = transformers().CLIPTokenizer.from_pretrained(folder)
        tokens = tokenizer(["the task is semantic"], padding="max_length", max_length=24, truncation=True)
        more["task_inputs"] = torch.tensor(tokens["input_ids"]) * torch.tensor(tokens["attention_mask"])
    with torch.no_grad():
        answer = model(pixel_values=image, **more)
    if name in DENSE:
        logits: torch.Tensor = answer.logits
        return logits
    classes = answer.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", classes, answer.masks_queries_logits.sigmoid())
