"""The size that images are brought to before windows are cut from them, in the words of ``--resize``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engines.errors import DeployError

MOST = 1 << 20  # pixels of a side


@dataclass(frozen=True)
class Resize:
    """kind: ``exact`` (height x width), or ``short`` or ``long``: that side becomes `height` pixels, the other follows.

    The other is rounded to the nearest pixel, as mmcv's `rescale_size` does it; with `floor` down, as transformers'
    ``shortest_edge``.
    """

    kind: str
    height: int
    width: int
    floor: bool = False

    @classmethod
    def parse(cls, text: str) -> Resize | None:
        """``none`` is None.  Raises DeployError."""
        if text == "none":
            return None
        if found := re.fullmatch(r"(\d{1,9})x(\d{1,9})", text):
            size = cls("exact", int(found[2]), int(found[1]))
        elif found := re.fullmatch(r"(short|long)=(\d{1,9})(:floor)?", text):
            size = cls(found[1], int(found[2]), int(found[2]), bool(found[3]))
        else:
            raise DeployError(f"resize: got {text!r}, expected none, WxH such as 512x512, short=N or long=N")
        if not 1 <= min(size.height, size.width) <= max(size.height, size.width) <= MOST:
            raise DeployError(f"resize: got {text}, expected sides of 1 to {MOST} pixels")
        return size

    def __str__(self) -> str:
        if self.kind == "exact":
            return f"{self.width}x{self.height}"
        return f"{self.kind}={self.height}{':floor' if self.floor else ''}"

    def of(self, height: int, width: int) -> tuple[float, float]:
        """(height, width) of what an image of this size becomes, before it is rounded to pixels."""
        if self.kind == "exact":
            return float(self.height), float(self.width)
        by = (min if self.kind == "short" else max)(height, width)
        sides = height * self.height / by, width * self.height / by
        return (float(int(sides[0])), float(int(sides[1]))) if self.floor else sides
