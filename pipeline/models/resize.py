"""The one resize that the runtime does not do itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def aligned(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, K, h, w) at `size` with aligned corners: the outermost pixels of input and output have the same centres."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
