"""Views of an image become labels: ctypes binding of views.c.  All is validated here, before C sees a pointer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from engines.contract import Float32, UInt8
from engines.errors import DeployError
from engines.spec import THRESHOLD, cut_of
from engines.tiling import core

MERGES = ("mean", "max")


@dataclass(frozen=True)
class ViewLogits:
    """Logits of windows over one view, in the order of its places.

    size: (height, width) of the view in pixels.  mirror: whether it is the image read from right to left.
    window: (height, width) in pixels.  tops, lefts: where each window lies on the view.
    rows: of each window (rows, K, w) float32: what is held of its logits, from row `first` on.
    logits: (h, w) of a whole window's logits.  share: of the view in the mean.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    logits: tuple[int, int]
    tops: Sequence[int]
    lefts: Sequence[int]
    rows: Sequence[Float32]
    first: Sequence[int]
    mirror: bool = False
    share: float = 1.0


class _View(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("height", "width", "mirror")),
        ("share", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("window_h", "window_w", "logits_h", "logits_w", "windows")),
        *((name, ctypes.c_void_p) for name in ("logits", "first", "tops", "lefts", "weight_y", "weight_x")),
        *((name, ctypes.c_int64) for name in ("class_stride", "row_stride")),
    ]  # fmt: skip


class _Plan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("height", "width", "classes", "views", "row0", "row1", "threads")),
        ("merge", ctypes.c_int32), ("cut", ctypes.c_float), ("threshold", ctypes.c_float),
    ]  # fmt: skip


def merge(
    views: Sequence[ViewLogits], image_size: tuple[int, int], rows: tuple[int, int], labels: UInt8,
    confidence: Float32 | None = None, kind: str = "mean", weights: core.Weights | None = None, threads: int = 0,
    threshold: float = THRESHOLD,
) -> None:  # fmt: skip
    """Write the labels, and confidence, of rows [r0, r1) of an image.

    Each view's logits are averaged where its windows overlap and resized bilinearly to `image_size`.  Of one view the
    largest wins; of several their softmax (of one class the sigmoid) is merged first, by `kind`: mean or max.
    labels: (r1 - r0, W) uint8 to write to.  confidence: the same shape in float32, the merged probability of the label.
    weights, threshold: as in `core.stitch`; of several views the threshold is of the merged probability.
    Raises DeployError on wrong shapes, rows that the held logits do not reach, and NaN or infinite logits.
    """
    (height, width), (row0, row1) = image_size, rows
    if not views or not 0 <= row0 < row1 <= height or width < 1 or kind not in MERGES:
        raise DeployError(
            f"views: got {len(views)} view(s) and rows {rows} of {image_size} by {kind!r}, expected a view, a part of "
            f"the image and one of {', '.join(MERGES)}"
        )
    classes = views[0].rows[0].shape[1]
    for name, array, kind_of in (("labels", labels, np.uint8), ("confidence", confidence, np.float32)):
        if array is not None and (
            array.shape != (row1 - row0, width) or array.dtype != kind_of or array.strides[1] != array.itemsize
        ):
            raise DeployError(f"views: got {name} {array.shape} {array.dtype}, expected {(row1 - row0, width)}")
    keep: list[ctypes.Array[Any]] = []
    listed = (_View * len(views))(*(_checked(view, classes, image_size, rows, weights, keep) for view in views))
    plan = _Plan(
        height=height, width=width, classes=classes, views=len(views), row0=row0, row1=row1,
        threads=core.threads_of(threads), merge=MERGES.index(kind), cut=cut_of(threshold), threshold=threshold,
    )  # fmt: skip
    workspace = core.aligned(_library().views_workspace(ctypes.byref(plan), listed))
    status = _library().views_merge(
        ctypes.byref(plan), listed, labels.ctypes.data, labels.strides[0],
        None if confidence is None else confidence.ctypes.data, 0 if confidence is None else confidence.strides[0] // 4,
        workspace.ctypes.data,
    )  # fmt: skip
    core.check("merge", status)


def needed(rows: tuple[int, int], image_height: int, view_height: int) -> tuple[int, int]:
    """[first, end) of the rows of a view that rows [r0, r1) of the image are sampled from."""
    return source(rows[0], view_height, image_height)[0], source(rows[1] - 1, view_height, image_height)[1] + 1


def source(row: int, of: int, to: int) -> tuple[int, int]:
    """The rows, of `of`, that row `row` of `to` lies between: as tile_source computes it, in float32."""
    scale = np.float32(of) / np.float32(to)
    low = min(int(max((np.float32(row) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))), of - 1)
    return low, min(low + 1, of - 1)


def _checked(
    view: ViewLogits, classes: int, image_size: tuple[int, int], rows: tuple[int, int], weights: core.Weights | None,
    keep: list[ctypes.Array[Any]],
) -> _View:  # fmt: skip
    """The view for C.  keep: gets what has to live as long as the result."""
    count, (low_h, low_w) = len(view.rows), view.logits
    if not count or not count == len(view.tops) == len(view.lefts) == len(view.first):
        raise DeployError(
            f"views: got {count} windows at {len(view.tops)} x {len(view.lefts)} places, expected as many"
        )
    start, end = needed(rows, image_size[0], view.size[0])
    for held, top, first in zip(view.rows, view.tops, view.first, strict=True):
        shaped = held.ndim == 3 and held.shape[1:] == (classes, low_w) and 1 <= classes <= 255
        if not shaped or held.dtype != np.float32 or not held.flags.c_contiguous or not held.flags.aligned:
            raise DeployError(
                f"views: got logits {held.shape} {held.dtype}, expected (rows, {classes}, {low_w}) float32"
            )
        above, below = max(start - top, 0), min(end - top, view.window[0]) - 1
        if above <= below:
            least, most = source(above, low_h, view.window[0])[0], source(below, low_h, view.window[0])[1]
            if not first <= least <= most < first + held.shape[0] <= low_h:
                raise DeployError(
                    f"views: got rows {first}..{first + held.shape[0]} of a window's {low_h}, expected {least}..{most}"
                )
    if weights is not None:
        core.check_weights(weights, view.window)
    pointers = (ctypes.c_void_p * count)(*(held.ctypes.data for held in view.rows))
    numbers = [(ctypes.c_int32 * count)(*values) for values in (view.first, view.tops, view.lefts)]
    arrays: list[ctypes.Array[Any]] = [pointers, *numbers]
    keep += arrays
    held_at, first_at, tops_at, lefts_at = (ctypes.addressof(each) for each in arrays)
    weight_y, weight_x = (None, None) if weights is None else (each.ctypes.data for each in weights)
    return _View(
        height=view.size[0], width=view.size[1], mirror=int(view.mirror), share=view.share,
        window_h=view.window[0], window_w=view.window[1], logits_h=low_h, logits_w=low_w, windows=count,
        logits=held_at, first=first_at, tops=tops_at, lefts=lefts_at, weight_y=weight_y, weight_x=weight_x,
        class_stride=low_w, row_stride=classes * low_w,
    )  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    lib = core.library()
    pointer, stride = ctypes.c_void_p, ctypes.c_ssize_t
    lib.views_workspace.argtypes = [pointer, pointer]
    lib.views_workspace.restype = ctypes.c_size_t
    lib.views_merge.argtypes = [pointer, pointer, pointer, stride, pointer, stride, pointer]
    return lib
