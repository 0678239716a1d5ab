"""EoMT, a plain ViT whose last blocks also read queries, and its form on DINOv3.

Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025, arXiv 2503.19108.
While it is trained, masks restrict what its queries attend to, with a probability that is annealed to zero.  The
probability is a buffer of the checkpoint; here it becomes a number, so that the graph has no branch on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.errors import DeployError
from pipeline.checkpoints.families.common import FolderSource, Network, pretrained
from pipeline.checkpoints.families.masks import ClassScores

NAME = "Hugging Face EoMT"
TYPES: tuple[str, ...] = ("eomt", "eomt_dinov3")


def matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in TYPES


def load(source: FolderSource) -> Network:
    """(N, 3, H, W) -> scores (N, K, h, w).  Raises DeployError for another window than the network is made for."""
    size = source.config.get("image_size", 640)
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if sides != source.window:
        raise DeployError(
            f"{source.folder}: got a {source.window[0]}x{source.window[1]} window, expected {sides[0]}x{sides[1]}, the "
            f"image_size that its grid is made for; give --tile {sides[0]}x{sides[1]}"
        )
    module = pretrained(source, "AutoModelForUniversalSegmentation")
    chances = [float(value) for value in module.get_buffer("attn_mask_probs")]
    if any(0 < chance < 1 for chance in chances):
        raise DeployError(
            f"{source.folder}: got attn_mask_probs {chances}, of a training that was stopped while its masks "
            "were drawn at random, expected 0 or 1; train to the end"
        )
    del module.attn_mask_probs
    object.__setattr__(module, "attn_mask_probs", chances)  # no buffer any more, but plain numbers
    return Network(ClassScores(module), source.model_type)
