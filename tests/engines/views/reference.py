"""mmsegmentation's inference on several views, written out in PyTorch: slide, resize, softmax, un-flip, mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engines.spec import ModelSpec
from engines.tiling.placement import Tiling


def view_size(size: tuple[int, int], scale: float, window: tuple[int, int]) -> tuple[int, int]:
    """Of a view, with SETR's lifting: until each side reaches the window."""
    factor = max(scale, window[0] / size[0], window[1] / size[1])
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def slide(model: Callable[[Tensor], Tensor], image: np.ndarray, tiling: Tiling, spec: ModelSpec) -> Tensor:
    """(1, K, H, W): mean of raw logits upsampled to the crop.  A smaller image is padded in normalised space."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    x = (torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() - mean) / std
    height, width = image.shape[:2]
    x = F.pad(x, (0, max(0, tiling.window_w - width), 0, max(0, tiling.window_h - height)))
    full = x.shape[2:]
    total, count = torch.zeros(1, spec.channels, *full), torch.zeros(full)
    for row in range(max(full[0] - tiling.window_h + tiling.stride_h - 1, 0) // tiling.stride_h + 1):
        for column in range(max(full[1] - tiling.window_w + tiling.stride_w - 1, 0) // tiling.stride_w + 1):
            bottom = min(row * tiling.stride_h + tiling.window_h, full[0])
            right = min(column * tiling.stride_w + tiling.window_w, full[1])
            place = (..., slice(bottom - tiling.window_h, bottom), slice(right - tiling.window_w, right))
            with torch.no_grad():
                logits = model(x[place])
            total[place] += F.interpolate(logits, (tiling.window_h, tiling.window_w), mode="bilinear")
            count[place[1:]] += 1
    return (total / count)[..., :height, :width]


def merged(
    model: Callable[[Tensor], Tensor], views: Sequence[tuple[np.ndarray, bool]], size: tuple[int, int], tiling: Tiling,
    spec: ModelSpec, merge: str = "mean",
) -> Tensor:  # fmt: skip
    """(K, H, W) probabilities.  views: resized images (before mirroring), and whether each is mirrored."""
    found = []
    for image, mirror in views:
        logits = slide(model, image[:, ::-1] if mirror else image, tiling, spec)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        probability = logits.softmax(1) if spec.channels > 1 else logits.sigmoid()
        found.append(probability.flip(3) if mirror else probability)
    stacked = torch.cat(found)
    return stacked.mean(0) if merge == "mean" else stacked.max(0).values


def require_equal(labels: np.ndarray, probabilities: Tensor, share: float = 0.99) -> None:
    """The labels are the largest wherever it leads by 1e-4 or more, which is nearly everywhere."""
    top2 = probabilities.topk(2, dim=0).values
    clear = (top2[0] - top2[1] >= 1e-4).numpy()
    assert clear.mean() > share
    assert np.array_equal(labels[clear], probabilities.argmax(0).numpy()[clear])
