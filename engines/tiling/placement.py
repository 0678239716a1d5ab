"""Where windows lie on an image, as mmsegmentation's slide mode places them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engines.errors import DeployError
from engines.records import read_record
from engines.tiling.sizes import Resize

BLENDS = ("uniform", "gaussian", "hann")
PADDINGS = ("zero", "edge", "reflect")
MAX_WINDOW = 16384  # a side; the network's input alone is then 3.2 GB

Margin = tuple[int, int, int, int]  # pixels at the top, the left, the bottom and the right
NO_MARGIN: Margin = (0, 0, 0, 0)


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

    margin: what the network sees of its window but gives no logits for, because its convolutions are not padded.  What
    it labels are the pixels in between: those are placed on the image, and the margin is read from around them.
    blend: weights of a window's pixels where windows overlap; ``uniform`` is mmsegmentation's plain mean.
    padding: what lies beyond an image smaller than the window, and in margins beyond the image's border; ``zero`` is
        zero after normalisation (the mean colour).
    resize: what images are brought to before windows are cut, in the words of ``--resize``; windows are placed on that.
    """

    window_h: int
    window_w: int
    stride_h: int
    stride_w: int
    blend: str = "uniform"
    padding: str = "zero"
    resize: str = "none"
    margin: Margin = NO_MARGIN

    def __post_init__(self) -> None:
        for name in ("window_h", "window_w", "stride_h", "stride_w"):
            value = getattr(self, name)
            if type(value) is not int:
                raise DeployError(f"tiling: got {name} {value!r}, expected a whole number of pixels")
        if min(self.margin) < 0 or min(self.labelled) < 1:
            raise DeployError(f"tiling: got margins {self.margin}, expected some that leave a part of the window")
        strides = (self.stride_h, self.stride_w)
        for axis, window, stride in zip(("height", "width"), self.labelled, strides, strict=True):
            if not 1 <= stride <= window:
                what = "window" if self.margin == NO_MARGIN else "labelled"
                raise DeployError(
                    f"tiling: got stride {stride} for {what} {axis} {window}, expected 1 to {window}; "
                    "a larger stride would leave pixels that no window sees"
                )
        for axis, window in (("height", self.window_h), ("width", self.window_w)):
            if window > MAX_WINDOW:
                raise DeployError(f"tiling: got window {axis} {window}, expected {MAX_WINDOW} at most")
        if self.blend not in BLENDS:
            raise DeployError(f"tiling: got blend {self.blend!r}, expected one of {', '.join(BLENDS)}")
        if self.padding not in PADDINGS:
            raise DeployError(f"tiling: got padding {self.padding!r}, expected one of {', '.join(PADDINGS)}")
        Resize.parse(self.resize)

    @property
    def labelled(self) -> tuple[int, int]:
        """Height and width of what a window gives labels for: all of it but the margin."""
        top, left, bottom, right = self.margin
        return self.window_h - top - bottom, self.window_w - left - right

    def placements(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """First rows of the window rows and first columns of the window columns; their product is all windows.

        They are those of what windows label; margins lie before and behind.
        The last window is moved back to end at the image's edge.  An image smaller than the window gets one at 0.
        """
        if min(height, width) < 1:
            raise DeployError(f"tiling: got an image {height} x {width}, expected at least one pixel")
        rows, columns = self.labelled
        return _axis(height, rows, self.stride_h), _axis(width, columns, self.stride_w)

    def window_rows(self, height: int, width: int) -> list[WindowRow]:
        """The same as a schedule: which windows to run in which order, and which rows of the image that finishes."""
        tops, lefts = self.placements(height, width)
        steps, start, first = [], 0, 0
        for index, top in enumerate(tops):
            end = tops[index + 1] if index + 1 < len(tops) else height
            while tops[first] + self.labelled[0] <= start:
                first += 1
            steps.append(WindowRow(index, top=top, lefts=tuple(lefts), rows=(start, end), held=range(first, index + 1)))
            start = end
        return steps

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tiling:
        return read_record(cls, data, "tiling", "build the bundle again")


def require_inside(
    tops: Iterable[int], lefts: Iterable[int], window: tuple[int, int], margin: Margin, size: tuple[int, int]
) -> None:  # fmt: skip
    """Raise DeployError unless windows (height, width), less their margin, lie on an image of `size` where one may."""
    rows, columns = window[0] - margin[0] - margin[2], window[1] - margin[1] - margin[3]
    for axis, starts, part, length in (("row", tops, rows, size[0]), ("column", lefts, columns, size[1])):
        for start in starts:
            if not 0 <= start < length or part < 1 or min(margin) < 0 or (start > 0 and start + part > length):
                raise DeployError(
                    f"gather: window of {part} at {axis} {start} does not fit into {length}; "
                    "it may leave the image only where it starts at 0"
                )


def _axis(length: int, window: int, stride: int) -> list[int]:
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(count)]
