"""What a frame of some size takes, from what windows took: nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engines.records import read_record
from engines.tiling.placement import Tiling


@dataclass(frozen=True)
class Costs:
    """What one bundle takes on one machine, medians in milliseconds.

    machine: processor, threads, SDK and device that this holds for.  gather_ms: of one window.  engine_ms: of one run
    of `batch` windows.  stitch_ms: of a million pixels of windows that lie on the image.  whole: milliseconds of a
    frame over the sum of these, what parts leave out or, on a GPU, overlap.
    peak_bytes: of the process after a frame that held `held_bytes`.  measured: when.
    """

    machine: str
    batch: int
    gather_ms: float
    engine_ms: float
    stitch_ms: float
    whole: float
    peak_bytes: int
    held_bytes: int
    measured: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Costs:
        """Raises DeployError."""
        return read_record(cls, data, "costs", "give plan --measure")


@dataclass(frozen=True)
class Prediction:
    """Of one image of size (height, width) in pixels.  rows, columns: of windows.  Times in milliseconds."""

    size: tuple[int, int]
    stride: tuple[int, int]
    rows: int
    columns: int
    gather_ms: float
    engine_ms: float
    stitch_ms: float
    frame_ms: float
    peak_bytes: int

    @property
    def windows(self) -> int:
        return self.rows * self.columns

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "size": list(self.size), "stride": list(self.stride), "windows": self.windows}


def predict(costs: Costs, tiling: Tiling, logits: tuple[int, ...], size: tuple[int, int]) -> Prediction:
    """logits: (1, K, h, w) of a window."""
    tops, lefts = tiling.placements(*size)
    gather = costs.gather_ms * len(tops) * len(lefts)
    # A frame by itself fills its last batch up with windows that are run for nothing.
    engine = costs.engine_ms * math.ceil(len(tops) * len(lefts) / costs.batch)
    stitch = costs.stitch_ms * covered(tiling, size) / 1e6
    peak = costs.peak_bytes - costs.held_bytes + held_bytes(tiling, logits, size)
    return Prediction(
        size, stride=(tiling.stride_h, tiling.stride_w), rows=len(tops), columns=len(lefts), gather_ms=gather,
        engine_ms=engine, stitch_ms=stitch, frame_ms=costs.whole * (gather + engine + stitch), peak_bytes=peak,
    )  # fmt: skip


def covered(tiling: Tiling, size: tuple[int, int]) -> int:
    """Pixels of all windows that lie on the image: each pixel as often as windows label it."""
    tops, lefts = tiling.placements(*size)
    rows = sum(min(tiling.labelled[0], size[0] - top) for top in tops)
    return rows * sum(min(tiling.labelled[1], size[1] - left) for left in lefts)


def held_bytes(tiling: Tiling, logits: tuple[int, ...], size: tuple[int, int]) -> int:
    """What a frame holds beside the engine: RGB, the mask and the one before it, and the logits (float32) of the window
    rows that are still needed.
    """
    rows = tiling.window_rows(*size)
    windows = max(len(row.held) * len(row.lefts) for row in rows)
    return 5 * size[0] * size[1] + 4 * windows * math.prod(logits[1:])
