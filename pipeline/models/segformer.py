"""SegFormer: a hierarchical transformer encoder (MiT) and an all-MLP decoder.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021,
arXiv 2105.15203.  Written from the paper; shapes below use N batch, C channels, H x W pixels or tokens, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.resize import aligned


@dataclass(frozen=True)
class SegFormerConfig:
    """Dimensions (paper, table 6) and the constants in which the published implementations differ.

    head: ``mlp`` is the paper's decoder (NVlabs, Hugging Face), ``conv`` is mmsegmentation's SegformerHead.
    gelu: ``none`` (exact, erf) or ``tanh``.
    align_corners, interpolate: of the resizes inside the decoder; only mmsegmentation's has a choice.
    full_size: (H, W) that the logits are resized to at last with aligned corners; None leaves that resize, with
        half-pixel centres, to the runtime.
    eps_*: LayerNorm epsilon of the patch embeddings, of the reduced keys, of the blocks, and after each stage.
    """

    classes: int = 19
    dims: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    decoder_dim: int = 256
    head: str = "mlp"
    gelu: str = "none"
    align_corners: bool = False
    interpolate: str = "bilinear"
    full_size: tuple[int, int] | None = None
    eps_embed: float = 1e-5
    eps_reduce: float = 1e-5
    eps_block: float = 1e-6
    eps_stage: float = 1e-6
    eps_bn: float = 1e-5


_SMALL, _LARGE = (32, 64, 160, 256), (64, 128, 320, 512)

# variant: (dims, depths, decoder_dim)
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "b0": (_SMALL, (2, 2, 2, 2), 256),
    "b1": (_LARGE, (2, 2, 2, 2), 256),
    "b2": (_LARGE, (3, 4, 6, 3), 768),
    "b3": (_LARGE, (3, 4, 18, 3), 768),
    "b4": (_LARGE, (3, 8, 27, 3), 768),
    "b5": (_LARGE, (3, 6, 40, 3), 768),
}


class PatchEmbedding(nn.Module):
    """Overlapping patches: strided convolution, then LayerNorm over channels.  (N, C, H, W) -> (N, HW/s^2, D)."""

    def __init__(self, channels: int, dim: int, size: int, stride: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, size, stride, padding=size // 2)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        height, width = x.shape[2], x.shape[3]
        return self.norm(x.flatten(2).transpose(1, 2)), height, width


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from tokens reduced R x R times (paper, eq. 2)."""

    def __init__(self, dim: int, heads: int, reduction: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction) if reduction > 1 else None
        self.reduce_norm = nn.LayerNorm(dim, eps) if reduction > 1 else None

    def _split(self, x: Tensor) -> Tensor:  # (N, L, C) -> (N, heads, L, C/heads)
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        context = x
        if self.reduce is not None and self.reduce_norm is not None:
            grid = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)
            context = self.reduce_norm(self.reduce(grid).flatten(2).transpose(1, 2))
        q, k, v = self._split(self.q(x)), self._split(self.k(context)), self._split(self.v(context))
        # Scaling Q, the smallest operand, keeps the (L, M) score matrix free of an extra pass.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        mixed: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed


class MixFFN(nn.Module):
    """Feed-forward with a depthwise 3x3 convolution that stands in for position embeddings (paper, eq. 3)."""

    def __init__(self, dim: int, hidden: int, gelu: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.gelu = gelu

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x).transpose(1, 2)
        x = self.dwconv(x.reshape(x.shape[0], x.shape[1], height, width))
        x = self.fc2(F.gelu(x, approximate=self.gelu).flatten(2).transpose(1, 2))
        return x


class SegFormerBlock(nn.Module):
    def __init__(self, config: SegFormerConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.norm1 = nn.LayerNorm(dim, config.eps_block)
        self.attention = EfficientAttention(dim, config.heads[stage], config.reductions[stage], config.eps_reduce)
        self.norm2 = nn.LayerNorm(dim, config.eps_block)
        self.ffn = MixFFN(dim, dim * config.mlp_ratios[stage], config.gelu)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attention(self.norm1(x), height, width)
        x = x + self.ffn(self.norm2(x), height, width)
        return x


class Stage(nn.Module):
    """One resolution of the pyramid.  (N, C, H, W) -> (N, D, H/s, W/s)."""

    def __init__(self, config: SegFormerConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        channels = 3 if stage == 0 else config.dims[stage - 1]
        self.embed = PatchEmbedding(
            channels, dim, size=config.patch_sizes[stage], stride=config.strides[stage], eps=config.eps_embed
        )
        self.blocks = nn.ModuleList(SegFormerBlock(config, stage) for _ in range(config.depths[stage]))
        self.norm = nn.LayerNorm(dim, config.eps_stage)

    def forward(self, x: Tensor) -> Tensor:
        x, height, width = self.embed(x)
        for block in self.blocks:
            x = block(x, height, width)
        x = self.norm(x)
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)


class MLPHead(nn.Module):
    """The paper's decoder: project each stage, upsample to 1/4, concatenate deepest first, fuse, classify."""

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.project = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in config.dims)
        self.fuse = nn.Conv2d(dim * len(config.dims), dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim, config.eps_bn)
        self.classify = nn.Conv2d(dim, config.classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        maps = [_resize(project(x), size) for project, x in zip(self.project, features, strict=True)]
        logits: Tensor = self.classify(F.relu(self.norm(self.fuse(torch.cat(maps[::-1], 1)))))
        return logits


class ConvHead(nn.Module):
    """mmsegmentation's decoder: BatchNorm and ReLU after each projection, concatenated shallowest first."""

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.interpolate, self.align_corners = config.interpolate, config.align_corners
        self.project = nn.ModuleList(_conv_bn_relu(c, dim, config.eps_bn) for c in config.dims)
        self.fuse = _conv_bn_relu(dim * len(config.dims), dim, config.eps_bn)
        self.classify = nn.Conv2d(dim, config.classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        maps = [
            _resize(project(x), size, self.interpolate, self.align_corners)
            for project, x in zip(self.project, features, strict=True)
        ]
        logits: Tensor = self.classify(self.fuse(torch.cat(maps, 1)))
        return logits


class SegFormer(nn.Module):
    """(N, 3, H, W) float32, normalised -> logits (N, K, H/4, W/4).  H and W must be multiples of 32."""

    def __init__(self, config: SegFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.dims)))
        self.head = MLPHead(config) if config.head == "mlp" else ConvHead(config)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        logits: Tensor = self.head(features)
        return logits if self.config.full_size is None else aligned(logits, self.config.full_size)


def _resize(x: Tensor, size: torch.Size, mode: str = "bilinear", align_corners: bool = False) -> Tensor:
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size=size, mode=mode, align_corners=None if mode == "nearest" else align_corners)


def _conv_bn_relu(channels: int, dim: int, eps: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, dim, 1, bias=False), nn.BatchNorm2d(dim, eps), nn.ReLU())
