"""A Hugging Face folder with a network of published size and random weights, to build and bench.

``python -m benchmarks.random_folder upernet-swin-t|eomt-s|mask2former-swin-t FOLDER``, then ``deploy.py build-engine
FOLDER -o B --tile 512`` and ``deploy.py bench B``.  Dimensions: those of the published ADE20K configs.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import transformers

LABELS = {index: f"class {index}" for index in range(150)}


def _swin_t() -> Any:
    return transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, image_size=224,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def _upernet() -> Any:
    return transformers.UperNetConfig(
        backbone_config=_swin_t(), hidden_size=512, auxiliary_in_channels=384, id2label=LABELS
    )


def _eomt() -> Any:
    return transformers.EomtConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=512, patch_size=16, num_queries=100,
        num_blocks=3, num_upscale_blocks=2, id2label=LABELS,
    )  # fmt: skip


def _mask2former() -> Any:
    return transformers.Mask2FormerConfig(backbone_config=_swin_t(), id2label=LABELS)


SIZES = {"upernet-swin-t": _upernet, "eomt-s": _eomt, "mask2former-swin-t": _mask2former}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SIZES)
    parser.add_argument("folder")
    args = parser.parse_args()
    kind = "Semantic" if args.name.startswith("upernet") else "Universal"
    torch.manual_seed(0)
    model = getattr(transformers, f"AutoModelFor{kind}Segmentation").from_config(SIZES[args.name]())
    if args.name == "eomt-s":
        model.attn_mask_probs.zero_()  # as training leaves it
    model.save_pretrained(args.folder)
    print(f"{args.folder}: {args.name}, {sum(tensor.numel() for tensor in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
