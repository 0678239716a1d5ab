"""The size that images are brought to before windows are cut from them, in the words of ``--resize``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from engines.errors import DeployError

MOST = 1 << 20  # pixels of a side


@dataclass(frozen=True)
class Resize:
    """kind: ``exact`` (height x width), or ``short`` or ``long``: that side becomes `height` pixels, the other follows.

    The other is rounded to the nearest pixel, as mmcv's `rescale_size` does it; with `floor` down, as transformers'
    ``shortest_edge``.  most: of ``short``, what the other side may become; the image then becomes smaller; 0 is
    anything.  by: both sides are enlarged to a multiple of so many pixels.
    """

    kind: str
    height: int
    width: int
    floor: bool = False
    most: int = 0
    by: int = 1

    @classmethod
    def parse(cls, text: str) -> Resize | None:
        """``none`` is None.  Raises DeployError."""
        if text == "none":
            return None
        if found := re.fullmatch(r"(\d{1,9})x(\d{1,9})", text):
            size = cls("exact", int(found[2]), int(found[1]))
        elif found := re.fullmatch(r"(short|long)=(\d{1,9})(?:,long=(\d{1,9}))?(?:,by=(\d{1,9}))?(:floor)?", text):
            side, most, by = int(found[2]), int(found[3] or 0), int(found[4] or 1)
            size = cls(found[1], side, side, floor=bool(found[5]), most=most, by=by)
        else:
            raise DeployError(
                f"resize: got {text!r}, expected none, WxH such as 512x512, short=N, short=N,long=M or long=N"
            )
        if size.most and not (size.kind == "short" and size.height <= size.most):
            raise DeployError(f"resize: got {text}, expected short=N,long=M with M of at least N")
        if not 1 <= min(size.height, size.width, size.by) <= max(size.height, size.width, size.most, size.by) <= MOST:
            raise DeployError(f"resize: got {text}, expected sides of 1 to {MOST} pixels")
        return size

    def __str__(self) -> str:
        if self.kind == "exact":
            return f"{self.width}x{self.height}"
        limits = (f",long={self.most}" if self.most else "") + (f",by={self.by}" if self.by > 1 else "")
        return f"{self.kind}={self.height}{limits}{':floor' if self.floor else ''}"

    def of(self, height: int, width: int) -> tuple[float, float]:
        """(height, width) of what an image of this size becomes, before it is rounded to pixels."""
        if self.kind == "exact":
            return float(self.height), float(self.width)
        by = (min if self.kind == "short" else max)(height, width)
        side = float(self.height)
        if self.most and max(height, width) / by * side > self.most:
            side = self.most * by / max(height, width)
        sides = height * side / by, width * side / by
        if self.floor and round(side) == by:
            sides = float(height), float(width)  # transformers leaves it, however long the other side is
        elif self.floor:
            sides = _whole(height, side, by), _whole(width, side, by)
        if self.by > 1:
            sides = self._multiple(sides[0]), self._multiple(sides[1])
        return sides

    def _multiple(self, side: float) -> float:
        return float(math.ceil(int(side + 0.5) / self.by) * self.by)


def _whole(length: int, side: float, by: int) -> float:
    """Of a side of `length` pixels where one of `by` becomes `side`, as transformers' get_size_with_aspect_ratio."""
    return float(round(side) if length == by else int(side * length / by))
