"""Sliding windows stitched in PyTorch, as mmsegmentation's slide mode defines them: the peers' way to a label map.

A peer supplies `network`, window (1, 3, H, W) -> logits (1, K, h, w); everything around it happens here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.frame import Frame
from engines.spec import IMAGENET_MEAN, IMAGENET_STD

Network = Callable[[torch.Tensor], torch.Tensor]


class Stopwatch:
    """Calls `network` and adds up the seconds it takes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.begin = time.perf_counter()
        self.inside = 0.0

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        logits = self.network(window)
        self.inside += time.perf_counter() - start
        return logits

    def frame(self, labels: NDArray[np.uint8], logits: torch.Tensor | None) -> Frame:
        return Frame(labels, self.inside, time.perf_counter() - self.begin - self.inside, logits)


class EventStopwatch(Stopwatch):
    """The same by CUDA events, so that nobody waits for the GPU between one window and the next."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        logits = self.network(window)
        end.record()
        self.events.append((start, end))
        return logits

    def frame(self, labels: NDArray[np.uint8], logits: torch.Tensor | None) -> Frame:
        total = time.perf_counter() - self.begin  # labels are on the host: the GPU is done
        inside = sum(start.elapsed_time(end) for start, end in self.events) / 1e3
        return Frame(labels, inside, total - inside, logits)


def normalised(image: NDArray[np.uint8], device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) on `device` with ImageNet's mean and deviation, computed there in float32."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() - mean) / std).to(dtype)


@torch.inference_mode()
def slide(
    image: NDArray[np.uint8], network: Network, window: int, stride: int, lean: bool = False, keep: bool = False,
    device: str = "cpu", dtype: torch.dtype = torch.float32,
) -> Frame:  # fmt: skip
    """Full-size logits of every window, summed, divided by a count, argmax; the image at least one window large.

    lean: sum into a slice, divide in place, and take `max` (three times faster than `argmax` on the CPU), as somebody
    would who has profiled it; otherwise pad every window to the image's size, as mmsegmentation does.  Same labels.
    device, dtype: of the windows, and with them of the logits and of what they are summed in, as mmsegmentation does.
    """
    watch = EventStopwatch(network) if device == "cuda" else Stopwatch(network)
    x = normalised(image, device, dtype)
    height, width = x.shape[2:]
    total = count = None
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            y2, x2 = min(row * stride + window, height), min(column * stride + window, width)
            y1, x1 = max(y2 - window, 0), max(x2 - window, 0)
            logits = watch(x[:, :, y1:y2, x1:x2].contiguous())
            logits = F.interpolate(logits, size=(y2 - y1, x2 - x1), mode="bilinear", align_corners=False)
            if total is None or count is None:
                total = x.new_zeros(1, logits.shape[1], height, width)
                count = x.new_zeros(1, 1, height, width)
            if lean:
                total[:, :, y1:y2, x1:x2] += logits
            else:
                total += F.pad(logits, (x1, width - x2, y1, height - y2))
            count[:, :, y1:y2, x1:x2] += 1
    assert total is not None
    assert count is not None
    mean = total.div_(count) if lean else total / count
    labels = (mean.max(1).indices if lean else mean.argmax(1))[0].to(torch.uint8).cpu().numpy()
    return watch.frame(labels, mean if keep else None)


def clear_pixels(logits: torch.Tensor, margin: float = 1e-4) -> NDArray[np.bool_]:
    """(H, W) True where the two best classes of (1, K, H, W) differ by at least `margin`; in bands, to save memory."""
    bands = []
    for band in logits[0].split(256, dim=1):
        best = band.topk(2, dim=0).values
        bands.append((best[0] - best[1] >= margin).cpu().numpy())
    return np.concatenate(bands)
