"""One segmented frame, whoever segmented it.  Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Frame:
    """labels (H, W) uint8; seconds inside the network and in all else; mean logits (1, K, H, W) if they were kept."""

    labels: NDArray[np.uint8]
    network: float
    rest: float
    logits: torch.Tensor | None = None

    @property
    def total(self) -> float:
        return self.network + self.rest
