"""SETR: a ViT encoder and one of three convolutional decoders (Naive, PUP, MLA).

Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers",
CVPR 2021, arXiv 2012.15840.  Written from the paper; the constants in which the two published implementations
(fudan-zvg/SETR and mmsegmentation) differ are in `SETRConfig`.

Every decoder here ends *before* the published one's last bilinear resize, which the runtime performs.  That is
exact where only a 1x1 classifier followed it: both are linear, one mixes channels, the other pixels, and bilinear
weights sum to one, so that the classifier's bias survives.  Earlier resizes stay: two do not compose into one.
Shapes below use N batch, C channels, D encoder width, h x w patches (H/16, W/16), K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import DeployError
from pipeline.models.resize import aligned
from pipeline.models.vit import PATCH, VARIANTS, ViT, ViTConfig

__all__ = ["DECODERS", "SETR", "VARIANTS", "SETRConfig", "mla_taps"]

DECODERS = ("naive", "pup", "mla")
MLA_LEVELS = 4


@dataclass(frozen=True)
class SETRConfig:
    """A decoder on a `ViTConfig`.

    decoder: ``naive`` or ``pup`` (both read the last tap), ``mla`` (reads four taps).
    channels: width of the Naive and PUP stages, and of MLA's top-down path; head_channels: of MLA's branches.
    stages: convolutions of Naive (1) and PUP (4); a bilinear resize by `between` stands between two of them.
    kernel: of those convolutions; conv_bias: whether they have a bias (fudan) or leave it to BatchNorm (mmseg).
    classify_kernel: of the last convolution; 1, but 3 in fudan's MLA.
    upsample: bilinear factor inside the graph beside the classifier: 1 where the published decoder resizes once.
    align_corners: of the upsampling inside the graph; as published True only in fudan's MLA.
    full_size: (H, W) that the logits are resized to at last with aligned corners; None leaves that resize, with
        half-pixel centres, to the runtime.
    eps_norm, eps_bn: of the decoder's LayerNorm and BatchNorm.
    """

    vit: ViTConfig = field(default_factory=ViTConfig)
    decoder: str = "naive"
    classes: int = 19
    channels: int = 256
    head_channels: int = 128
    stages: int = 1
    between: int = 2
    kernel: int = 1
    conv_bias: bool = True
    classify_kernel: int = 1
    upsample: int = 1
    align_corners: bool = False
    full_size: tuple[int, int] | None = None
    eps_norm: float = 1e-6
    eps_bn: float = 1e-5

    def __post_init__(self) -> None:
        expected = MLA_LEVELS if self.decoder == "mla" else 1
        if self.decoder not in DECODERS or len(self.vit.taps) != expected:
            raise DeployError(
                f"SETR decoder: got {self.decoder!r} with {len(self.vit.taps)} encoder outputs, "
                f"expected one of {', '.join(DECODERS)} with {expected}"
            )
        factor = self.upsample * (1 if self.decoder == "mla" else self.between ** (self.stages - 1))
        if factor < 1 or PATCH % factor:
            raise DeployError(
                f"SETR decoder: got upsampling by {factor} in all, expected a divisor of {PATCH}; "
                "load this model through a Python factory"
            )

    @property
    def logits_stride(self) -> int:
        """Input pixels per logit along each axis."""
        between = 1 if self.decoder == "mla" else self.between ** (self.stages - 1)
        return 1 if self.full_size else PATCH // (between * self.upsample)

    @property
    def variant(self) -> str:
        """Decoder and encoder, such as ``pup-large``."""
        return f"{self.decoder}-{self.vit.variant}"


class UpHead(nn.Module):
    """Naive (one stage) and PUP (four, x2 between them).  [(N, h*w, D)] -> (N, K, h*s, w*s)."""

    def __init__(self, config: SETRConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.vit.dim, config.eps_norm)
        widths = (config.vit.dim, *(config.channels,) * config.stages)
        self.stages = nn.ModuleList(
            _conv_bn_relu(c, config.channels, config.kernel, config.eps_bn, config.conv_bias) for c in widths[:-1]
        )
        self.classify = nn.Conv2d(config.channels, config.classes, 1)

    def forward(self, taps: list[Tensor]) -> Tensor:
        x = _to_grid(self.norm(taps[-1]), self.config.vit.grid)
        for index, stage in enumerate(self.stages):
            if index:
                x = _upsample(x, self.config.between, self.config.align_corners)
            x = stage(x)
        # The classifier first: K channels are cheaper to upsample than C, and the result is the same.
        return _upsample(self.classify(x), self.config.upsample, self.config.align_corners)


class MLAHead(nn.Module):
    """Multi-level aggregation (paper, fig. 1c): a top-down sum of four levels, one branch for each, concatenated.

    Lists run from the shallowest level to the deepest.  [(N, h*w, D)] * 4 -> (N, K, h*s, w*s).
    """

    def __init__(self, config: SETRConfig) -> None:
        super().__init__()
        self.config = config
        dim, middle, out, eps = config.vit.dim, config.channels, config.head_channels, config.eps_bn
        self.norms = nn.ModuleList(nn.LayerNorm(dim, config.eps_norm) for _ in range(MLA_LEVELS))
        self.project = nn.ModuleList(_conv_bn_relu(dim, middle, 1, eps) for _ in range(MLA_LEVELS))
        self.fuse = nn.ModuleList(_conv_bn_relu(middle, middle, 3, eps) for _ in range(MLA_LEVELS))
        self.branches = nn.ModuleList(
            nn.Sequential(_conv_bn_relu(middle, out, 3, eps), _conv_bn_relu(out, out, 3, eps))
            for _ in range(MLA_LEVELS)
        )
        kernel = config.classify_kernel
        self.classify = nn.Conv2d(MLA_LEVELS * out, config.classes, kernel, padding=kernel // 2)

    def forward(self, taps: list[Tensor]) -> Tensor:
        factor, align = self.config.upsample, self.config.align_corners
        maps = [
            project(_to_grid(norm(x), self.config.vit.grid))
            for project, norm, x in zip(self.project, self.norms, taps, strict=True)
        ]
        for level in range(MLA_LEVELS - 2, -1, -1):
            maps[level] = maps[level] + maps[level + 1]
        # All levels have one resolution, so that upsampling their concatenation is upsampling each.
        x = torch.cat([branch(fuse(x)) for branch, fuse, x in zip(self.branches, self.fuse, maps, strict=True)], 1)
        if self.config.classify_kernel == 1:
            return _upsample(self.classify(x), factor, align)
        logits: Tensor = self.classify(_upsample(x, factor, align))
        return logits


class SETR(nn.Module):
    """(N, 3, H, W) float32, normalised, exactly the configured window -> logits (N, K, H/s, W/s).

    s is `SETRConfig.logits_stride`; what remains is one bilinear resize to (H, W) with half-pixel centres.
    """

    def __init__(self, config: SETRConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViT(config.vit)
        self.head = MLAHead(config) if config.decoder == "mla" else UpHead(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(x))
        return logits if self.config.full_size is None else aligned(logits, self.config.full_size)


def mla_taps(depth: int) -> tuple[int, ...]:
    """The ends of four equal groups of blocks: 5, 11, 17, 23 of 24; 2, 5, 8, 11 of 12.  Raises DeployError."""
    if depth < MLA_LEVELS or depth % MLA_LEVELS:
        raise DeployError(f"SETR MLA: got {depth} encoder blocks, expected a multiple of {MLA_LEVELS}")
    return tuple(depth * (level + 1) // MLA_LEVELS - 1 for level in range(MLA_LEVELS))


def _to_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # (N, h*w, C) -> (N, C, h, w)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _upsample(x: Tensor, factor: int, align_corners: bool) -> Tensor:
    if factor == 1:
        return x
    size = (x.shape[2] * factor, x.shape[3] * factor)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def _conv_bn_relu(channels: int, out: int, kernel: int, eps: float, bias: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out, eps), nn.ReLU())
