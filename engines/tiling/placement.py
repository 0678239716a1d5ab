"""Where windows lie on an image, as mmsegmentation's slide mode places them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engines.errors import DeployError
from engines.records import read_record
from engines.tiling.sizes import Resize

BLENDS = ("uniform", "gaussian", "hann")
PADDINGS = ("zero", "edge", "reflect")
MAX_WINDOW = 16384  # a side; the network's input alone is then 3.2 GB


@dataclass(frozen=True)
class WindowRow:
    """One row of windows, top to bottom.

    rows: [r0, r1) of the image that are final once this row has run.  held: the window rows that touch them, from the
    first whose logits must still be there to this one.
    """

    index: int
    top: int
    lefts: tuple[int, ...]
    rows: tuple[int, int]
    held: range


@dataclass(frozen=True)
class Tiling:
    """Window and stride in pixels.

    blend: weights of a window's pixels where windows overlap; ``uniform`` is mmsegmentation's plain mean.
    padding: what lies beyond an image smaller than the window; ``zero`` is zero after normalisation (the mean colour).
    resize: what images are brought to before windows are cut, in the words of ``--resize``; windows are placed on that.
    """

    window_h: int
    window_w: int
    stride_h: int
    stride_w: int
    blend: str = "uniform"
    padding: str = "zero"
    resize: str = "none"

    def __post_init__(self) -> None:
        for name in ("window_h", "window_w", "stride_h", "stride_w"):
            value = getattr(self, name)
            if type(value) is not int:
                raise DeployError(f"tiling: got {name} {value!r}, expected a whole number of pixels")
        for axis, window, stride in (("height", self.window_h, self.stride_h), ("width", self.window_w, self.stride_w)):
            if not 1 <= stride <= window:
                raise DeployError(
                    f"tiling: got stride {stride} for window {axis} {window}, expected 1 to {window}; "
                    "a larger stride would leave pixels that no window sees"
                )
            if window > MAX_WINDOW:
                raise DeployError(f"tiling: got window {axis} {window}, expected {MAX_WINDOW} at most")
        if self.blend not in BLENDS:
            raise DeployError(f"tiling: got blend {self.blend!r}, expected one of {', '.join(BLENDS)}")
        if self.padding not in PADDINGS:
            raise DeployError(f"tiling: got padding {self.padding!r}, expected one of {', '.join(PADDINGS)}")
        Resize.parse(self.resize)

    def placements(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """First rows of the window rows and first columns of the window columns; their product is all windows.

        The last window is moved back to end at the image's edge.  An image smaller than the window gets one at 0.
        """
        if min(height, width) < 1:
            raise DeployError(f"tiling: got an image {height} x {width}, expected at least one pixel")
        return _axis(height, self.window_h, self.stride_h), _axis(width, self.window_w, self.stride_w)

    def window_rows(self, height: int, width: int) -> list[WindowRow]:
        """The same as a schedule: which windows to run in which order, and which rows of the image that finishes."""
        tops, lefts = self.placements(height, width)
        steps, start, first = [], 0, 0
        for index, top in enumerate(tops):
            end = tops[index + 1] if index + 1 < len(tops) else height
            while tops[first] + self.window_h <= start:
                first += 1
            steps.append(WindowRow(index, top=top, lefts=tuple(lefts), rows=(start, end), held=range(first, index + 1)))
            start = end
        return steps

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tiling:
        return read_record(cls, data, "tiling", "build the bundle again")


def _axis(length: int, window: int, stride: int) -> list[int]:
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(count)]
