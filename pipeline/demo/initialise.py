"""Weights to start training from."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.models.vit import ViT

_Module = TypeVar("_Module", bound=nn.Module)


@torch.no_grad()
def initialise(model: _Module) -> _Module:
    """Truncated normal for projections, He normal (fan-out) for convolutions, as is usual for these encoders.

    A ViT's patch embedding is a projection of the patch, and its positions start as sines and cosines (Chen et al.,
    MoCo v3, arXiv 2104.02057): learning them from nothing takes more pictures than there are here.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ViT):
            nn.init.normal_(module.embed.weight, std=module.embed.weight[0].numel() ** -0.5)
            module.position[:, int(module.config.class_token) :] = sines(module.config.grid, module.config.dim)
            if module.class_token is not None:
                nn.init.trunc_normal_(module.class_token, std=0.02)
    return model


def sines(grid: tuple[int, int], dim: int) -> Tensor:
    """(h * w, dim) float32: a quarter of the channels each for sine and cosine of row and column."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)
