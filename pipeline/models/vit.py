"""ViT: the plain transformer encoder that SETR reads its features from.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv 2010.11929.  Written from the paper; shapes
below use N batch, L tokens, D width, H x W pixels, h x w patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import DeployError

PATCH = 16  # pixels per token along each axis, in every published SETR
HEAD_DIM = 64
MAX_DIM = 1024  # ViT-Large; wider ones (Huge: 1280 with 80 per head) leave the 64-per-head rule

# variant: (width, depth)
VARIANTS: dict[str, tuple[int, int]] = {"base": (768, 12), "large": (1024, 24)}


@dataclass(frozen=True)
class ViTConfig:
    """Dimensions of the encoder and what is read from it.

    window: input (height, width) in pixels; the position embeddings fix it, so there is one engine per window.
    taps: 0-based indices of the blocks whose tokens are returned, ascending, without a final normalisation.
    class_token: whether a class token takes part in attention; it is never returned.  SETR MLA drops it before
        the first block, Naive and PUP after the last.
    eps: LayerNorm epsilon of the blocks.
    head_dim: width of a head; None is the published 64, and then only widths are taken for which that is known to hold.
    """

    window: tuple[int, int] = (768, 768)
    dim: int = 1024
    depth: int = 24
    mlp_dim: int = 4096
    taps: tuple[int, ...] = (23,)
    class_token: bool = True
    eps: float = 1e-6
    head_dim: int | None = None

    def __post_init__(self) -> None:
        if min(self.window) < PATCH or any(side % PATCH for side in self.window):
            raise DeployError(
                f"window: got {self.window[0]}x{self.window[1]}, expected multiples of {PATCH}; pick another --tile"
            )
        if self.head_dim is None and (self.dim % HEAD_DIM or not HEAD_DIM <= self.dim <= MAX_DIM):
            raise DeployError(
                f"ViT width: got {self.dim}, expected a multiple of {HEAD_DIM} up to {MAX_DIM}; "
                "the number of attention heads is not stored and cannot be told for other widths"
            )

    @property
    def heads(self) -> int:
        return self.dim // (self.head_dim or HEAD_DIM)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens (rows, columns) in a window."""
        return self.window[0] // PATCH, self.window[1] // PATCH

    @property
    def variant(self) -> str:
        """The name in VARIANTS, or ``custom``."""
        return next((name for name, size in VARIANTS.items() if size == (self.dim, self.depth)), "custom")


class Attention(nn.Module):
    """Multi-head self-attention.  (N, L, D) -> (N, L, D)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:  # (N, L, D) -> (N, heads, L, D/heads)
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.q(x)), self._split(self.k(x)), self._split(self.v(x))
        # Scaling Q, the smallest operand, keeps the (L, L) score matrix free of an extra pass.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        mixed: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed


class ViTBlock(nn.Module):
    """Pre-norm transformer block (paper, eqs. 2 and 3), exact GELU.  (N, L, D) -> (N, L, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.eps)
        self.attention = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, config.eps)
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x


class ViT(nn.Module):
    """(N, 3, H, W) float32, normalised, exactly the configured window -> one (N, h*w, D) per tap, row-major."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        tokens = config.grid[0] * config.grid[1] + config.class_token
        self.embed = nn.Conv2d(3, config.dim, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.class_token else None
        self.position = nn.Parameter(torch.zeros(1, tokens, config.dim))
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.depth))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.embed(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), 1)
        x = x + self.position
        taps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.config.taps:
                taps.append(x if self.class_token is None else x[:, 1:])
        return taps


def resize_position(
    position: Tensor, grid: tuple[int, int], trained: tuple[int, int] | None = None, mode: str = "bilinear"
) -> Tensor:
    """Position embeddings for another window: interpolated over the patch grid, half-pixel centres.

    position: (1, 1 + T, D), the class token's row first.  Returns (1, 1 + h*w, D); the first row is unchanged.
    trained: the grid that they were trained on; None takes it to be square, and a T that is no square is then accepted
    only if it already is h*w.  mode: ``bilinear`` or ``bicubic``.  Raises DeployError otherwise.
    """
    count = position.shape[1] - 1
    side = math.isqrt(max(count, 0))
    rows, columns = trained or (side, side)
    if rows * columns != count or count < 1:
        if count == grid[0] * grid[1]:
            return position
        raise DeployError(
            f"position embedding: got {count} patches, expected {'a square number' if trained is None else trained} or "
            f"{grid[0]}x{grid[1]}; use the window the model was trained with"
        )
    if (rows, columns) == grid:
        return position
    patches = position[:, 1:].transpose(1, 2).reshape(1, -1, rows, columns)
    patches = F.interpolate(patches, size=grid, mode=mode, align_corners=False)
    return torch.cat((position[:, :1], patches.flatten(2).transpose(1, 2)), 1)
