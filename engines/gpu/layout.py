"""How much memory a frame takes on a GPU, and how it is laid out in one block of each kind."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from engines.tiling.placement import Tiling, WindowRow

ALIGNMENT = 256  # of everything that an engine reads or writes, in bytes


@dataclass(frozen=True)
class Region:
    """A part of a block.  device, host: where it starts in that kind of memory; None where it has no place there."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    device: int | None
    host: int | None

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """What the frames of one image size hold.

    whole: the image and its labels, in one piece; otherwise only the rows at work.
    steps: the rows of windows.  ring: how many of them have their logits held.  pitch: windows in each, rounded up to
    whole batches, because the engine writes whole batches.
    above: rows of the image that a window reads before those that it labels, see `Tiling.margin`.
    regions: image, labels, confidence if asked for, status, logits.  device, host: bytes of each kind in all.
    """

    height: int
    width: int
    whole: bool
    steps: tuple[WindowRow, ...]
    ring: int
    pitch: int
    regions: dict[str, Region]
    device: int
    host: int
    above: int = 0

    @classmethod
    def of(
        cls, tiling: Tiling, size: tuple[int, int], confidence: bool, whole: bool, batch: int, window_bytes: int,
        shared: bool, channels: int = 3,
    ) -> Plan:  # fmt: skip
        """size: (height, width) of the image.  batch: windows per run of the engine.  window_bytes: logits of one.
        channels: of the image.

        shared: the GPU uses the host's memory in place, so that the image and what comes back need no copy.
        """
        height, width = size
        steps = tuple(tiling.window_rows(height, width))
        ring, pitch = max(len(step.held) for step in steps), -(-len(steps[0].lefts) // batch) * batch
        image_rows = height if whole else min(tiling.window_h, height)
        label_rows = height if whole else max(end - start for start, end in (step.rows for step in steps))
        wanted: list[tuple[str, tuple[int, ...], type[np.generic], bool, bool]] = [
            ("image", (image_rows, width, channels), np.uint8, not shared, True),
            ("labels", (label_rows, width), np.uint8, not shared, True),
            ("confidence", (label_rows, width), np.float32, not shared, True),
            ("status", (1,), np.int32, True, True),
            ("logits", (ring * pitch * window_bytes,), np.uint8, True, False),
        ]
        regions, device, host = {}, 0, 0
        for name, shape, dtype, on_device, on_host in wanted:
            if name == "confidence" and not confidence:
                continue
            region = Region(shape, np.dtype(dtype), device if on_device else None, host if on_host else None)
            regions[name] = region
            room = -(-region.bytes // ALIGNMENT) * ALIGNMENT
            device, host = device + room * on_device, host + room * on_host
        return cls(
            height,
            width=width,
            whole=whole,
            steps=steps,
            ring=ring,
            pitch=pitch,
            regions=regions,
            device=device,
            host=host,
            above=tiling.margin[0],
        )

    def first_row(self, step: WindowRow) -> int:
        """Of the image, the first that is held while `step` runs: as many follow as the image's region has."""
        return max(0, min(step.top - self.above, self.height - self.regions["image"].shape[0]))

    @property
    def bytes(self) -> int:
        return self.device + self.host

    @property
    def windows(self) -> int:
        return len(self.steps) * len(self.steps[0].lefts)
