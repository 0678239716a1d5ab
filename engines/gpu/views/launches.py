"""Launches of the kernels in tile_views.cuh: an image at another size, and rows of labels of all views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engines.errors import DeployError
from engines.gpu.kernels import STITCH_BLOCK, Launch, grid_of, record, require_addresses, stitch
from engines.spec import THRESHOLD, cut_of
from engines.tiling.core import MAX_PIXELS
from engines.tiling.merge import MERGES, needed
from engines.tiling.placement import Tiling

FIRST, LAST = 1, 2  # TILE_VIEWS_FIRST, TILE_VIEWS_LAST
RESIZE_KERNEL, MERGE_KERNEL = "tile_resize_u8", "tile_views_f32"

RESIZE = np.dtype(
    [
        ("image", np.uint64), ("out", np.uint64),
        *((name, np.int64) for name in ("stride_y", "stride_x", "stride_c")),
        *((name, np.int32) for name in ("height", "width", "out_h", "out_w", "channels")),
    ],
    align=True,
)  # fmt: skip
VIEWS = np.dtype(
    [
        *((name, np.uint64) for name in ("means", "merged", "labels", "confidence", "status")),
        *((name, np.int64) for name in ("plane", "labels_stride", "confidence_stride")),
        *(
            (name, np.int32)
            for name in ("height", "width", "view_h", "view_w", "mirror", "first_row", "row0", "row1", "classes",
                         "merge", "turn")
        ),
        *((name, np.float32) for name in ("share", "cut", "threshold")),
    ],
    align=True,
)  # fmt: skip


@dataclass(frozen=True)
class HeldView:
    """The logits of a view's windows in the memory of the GPU, as `engines.gpu.kernels.stitch` takes them.

    size: of the view, (height, width); its windows lie where `tiling` places them on that.  held: rows of windows.
    share: of the view in the mean.
    """

    size: tuple[int, int]
    tiling: Tiling
    logits: int
    ring: int
    pitch: int
    held: range
    mirror: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Logits:
    """Of every window: (classes, *low) values of `dtype`, float32 or float16.  weights: see `stitch`."""

    dtype: str
    classes: int
    low: tuple[int, int]
    weights: tuple[int, int] | None


@dataclass(frozen=True)
class Target:
    """Where rows of an image go: addresses of row r0, strides as in `stitch`.

    means: float32, as many as `room` says for the largest view.  merged: (classes, r1 - r0, width) float32, which one
    view alone does not use.
    """

    labels: int
    labels_stride: int
    confidence: int
    confidence_stride: int
    status: int
    means: int
    merged: int


def room(classes: int, rows: int, size: tuple[int, int], view: tuple[int, int]) -> int:
    """The most floats that the mean logits of a view take, of as many `rows` of an image of `size`."""
    return classes * view[1] * min(view[0], rows * view[0] // size[0] + 3)


def resize(
    image: int, size: tuple[int, int], strides: tuple[int, int, int], channels: int, out: int, out_size: tuple[int, int]
) -> Launch:  # fmt: skip
    """An image (*size, channels) uint8 at (*out_size, channels), contiguous: the bits of ``opencv-bilinear`` in
    `engines.images.resize.resample`.

    image, out: addresses.  strides: bytes from row to row, pixel to pixel and channel to channel, negative ones too.
    Raises DeployError when a value is out of range.
    """
    require_addresses("resize", image=image, out=out)
    if not 0 < min(*size, *out_size) <= max(*size, *out_size) <= MAX_PIXELS or channels < 1:
        raise DeployError(
            f"resize: got {size} to {out_size} of {channels} channels, expected sides of 1 to {MAX_PIXELS}"
        )
    argument = record(
        RESIZE, image=image, out=out, stride_y=strides[0], stride_x=strides[1], stride_c=strides[2], height=size[0],
        width=size[1], out_h=out_size[0], out_w=out_size[1], channels=channels,
    )  # fmt: skip
    return Launch(RESIZE_KERNEL, grid_of(out_size), STITCH_BLOCK, argument)


def merge(
    views: Sequence[HeldView], logits: Logits, image_size: tuple[int, int], rows: tuple[int, int], to: Target,
    kind: str = "mean", threshold: float = THRESHOLD,
) -> Iterator[Launch]:  # fmt: skip
    """Labels of rows [r0, r1) of an image from all its views: the bits of `engines.tiling.merge.merge`.

    To be run in their order.  Raises DeployError when a value is out of range, or a row is not held.
    """
    (height, width), (row0, row1) = image_size, rows
    if not views or not 0 <= row0 < row1 <= height or max(image_size) > MAX_PIXELS or kind not in MERGES:
        raise DeployError(
            f"views: got {len(views)} view(s) and rows {rows} of {image_size} by {kind!r}, expected a view, a part of "
            f"the image and one of {', '.join(MERGES)}"
        )
    require_addresses("views", labels=to.labels, status=to.status, means=to.means, merged=to.merged)
    for index, view in enumerate(views):
        first, end = needed(rows, height, view.size[0])
        yield stitch(
            view.logits, logits.dtype, logits.low, classes=logits.classes, ring=view.ring, pitch=view.pitch,
            tiling=view.tiling, size=view.size, rows=(first, end), held=view.held, weights=logits.weights, labels=0,
            labels_stride=view.size[1], confidence=0, confidence_stride=view.size[1], status=to.status, means=to.means,
        )  # fmt: skip
        argument = record(
            VIEWS, means=to.means, merged=to.merged, labels=to.labels, confidence=to.confidence, status=to.status,
            plane=(end - first) * view.size[1], labels_stride=to.labels_stride, confidence_stride=to.confidence_stride,
            height=height, width=width, view_h=view.size[0], view_w=view.size[1], mirror=int(view.mirror),
            first_row=first, row0=row0, row1=row1, classes=logits.classes, merge=MERGES.index(kind),
            turn=FIRST * (index == 0) + LAST * (index + 1 == len(views)), share=view.share, cut=cut_of(threshold),
            threshold=threshold,
        )  # fmt: skip
        yield Launch(MERGE_KERNEL, grid_of((row1 - row0, width)), STITCH_BLOCK, argument)
