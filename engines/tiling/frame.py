"""A whole frame on a device that runs row by row: its strips, played to the end into one mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from engines.contract import UInt8
from engines.tiling.device import Confidence, Mask, Strips

S = TypeVar("S", bound=Strips)


class FrameOfStrips(Generic[S]):
    """Runs when it is played; its mask is there when that returns.  strips: made to write into the mask."""

    def __init__(self, height: int, width: int, confidence: Confidence, strips: Callable[[Mask], S]) -> None:
        certainty = np.empty((height, width), np.float32) if confidence else None
        self._mask = Mask(np.empty((height, width), np.uint8), certainty)
        self._strips = strips(self._mask)

    def put(self, image: UInt8) -> None:
        self._strips.put(image)

    def play(self) -> None:
        for index in range(len(self._strips.steps)):
            self._strips.advance(index)

    @property
    def done(self) -> bool:
        return True

    def mask(self) -> Mask:
        return self._mask
