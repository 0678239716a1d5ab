"""mmsegmentation's slide mode, of logits that are there: what a bundle's tiled mask is held against."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from engines.contract import Float32, UInt8
from engines.proof.agreement import decisions
from engines.tiling.core import blend_weights
from engines.tiling.placement import Tiling


def slide_decisions(
    logits: Float32, tiling: Tiling, size: tuple[int, int], threshold: float | None = None
) -> tuple[UInt8, Float32]:
    """mmsegmentation's slide mode in PyTorch, for logits (M, K, h, w) of all windows of an image of `size`.

    Returns labels (H, W) and their margins, in logits.  threshold: `ModelSpec.threshold`.
    """
    height, width = size
    window = tiling.labelled
    tops, lefts = tiling.placements(height, width)
    total = torch.zeros(logits.shape[1], max(height, window[0]), max(width, window[1]))
    cover = torch.zeros(total.shape[1:])
    weights = blend_weights(tiling.blend, *window)
    weight = torch.ones(window) if weights is None else torch.from_numpy(np.outer(*weights))
    places = [(top, left) for top in tops for left in lefts]
    for (top, left), values in zip(places, torch.from_numpy(logits), strict=True):
        full = F.interpolate(values[None], size=window, mode="bilinear", align_corners=False)[0]
        total[:, top : top + window[0], left : left + window[1]] += full * weight
        cover[top : top + window[0], left : left + window[1]] += weight
    # The sum of weights is the same for every class of a pixel, so argmax needs no division.
    labels = total.argmax(0) if threshold is None else (total[0] / cover).double().sigmoid() > threshold
    _, margin = decisions((total / cover)[None, :, :height, :width].numpy(), threshold)
    return labels[:height, :width].to(torch.uint8).numpy(), margin[0]
