"""Windows chosen by what a unit sees: which share of its field the window that labels a pixel holds, stride by stride.

Windows that lie `stride` apart label a pixel at least once from a window in which it has (window - stride) / 2 pixels
before and behind it: half way between two windows' middles is the worst that can happen, along both axes at once in the
corners.  The share of such a pixel is what its window holds of the energy that a whole window around it would.
Pixels nearer than that to the image's border see no further at any stride, and are not counted.
"""

from __future__ import annotations

from engines.plan.strides import StrideShare
from pipeline.receptive.field import Field

STEPS = 32  # strides that are tried: so many parts of the window
NAMED = (16, 24, 28)  # of these: 512, 768 and 896 of a window of 1024


def stride_shares(field: Field) -> list[StrideShare]:
    """From the smallest stride to the window itself."""
    height, width = field.gradient.shape
    strides = sorted({(max(1, height * part // STEPS), max(1, width * part // STEPS)) for part in range(1, STEPS + 1)})
    return [StrideShare(*stride, share_at(field, stride)) for stride in strides]


def share_at(field: Field, stride: tuple[int, int]) -> float:
    """Of the worst interior pixel, over the four corners that it may stand in."""
    height, width = field.gradient.shape
    near = ((height - stride[0]) // 2, (width - stride[1]) // 2)
    far = (height, width)
    corners = [(a, b) for a in (near[0], far[0]) for b in (near[1], far[1])]
    return min(field.within(corner, (near[0] + far[0] - corner[0], near[1] + far[1] - corner[1])) for corner in corners)
