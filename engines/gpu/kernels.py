"""Launches of the kernels in tile.cu: what they are told, checked and laid out as tile.h declares it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.contract import Float32
from engines.errors import DeployError
from engines.spec import MAX_BANDS, THRESHOLD, cut_of
from engines.tiling.core import MAX_PIXELS, check_order, normalisation
from engines.tiling.placement import NO_MARGIN, PADDINGS, Margin, Tiling, require_inside

MAX_WINDOWS = 64  # of one launch: TILE_MAX_WINDOWS
NOT_FINITE, UNCOVERED = 1, 2  # bits of the status word: TILE_STATUS_NOT_FINITE, TILE_STATUS_UNCOVERED
NOT_RUN = -1  # the status word of a frame until its work has begun, all of whose bytes are 0xff
SUFFIX = {"float32": "f32", "float16": "f16"}  # of the kernels' names, by dtype of the network's inputs or logits
GATHER_BLOCK, GATHER_PIXELS = (64, 4, 1), 4  # pixels a thread: 4 of one row
SCATTER_BLOCK, SCATTER_BYTES = (256, 1, 1), 64  # bytes a thread, about
STITCH_BLOCK, STITCH_PATCH, STITCH_STRIP = (32, 4, 1), (4, 4), (1, 4)  # rows and columns a thread
MEANS_CLASSES = 8  # a thread: TILE_MEANS_CLASSES
MAX_PHASES_LOG2 = 5  # beyond a ratio of 32 (TILE_MAX_RATIO of tile.c) columns are interpolated one by one
_GRID_Y = 65535  # the most blocks of a grid along y

PLACE = np.dtype(
    [
        ("image", np.uint64), ("logits", np.uint64), ("arrived", np.uint64), ("stride_y", np.int64),
        ("stride_x", np.int64), ("stride_c", np.int64), ("height", np.int32), ("width", np.int32),
        ("first_row", np.int32), ("top", np.int32), ("left", np.int32),
    ],
    align=True,
)  # fmt: skip
GATHER = np.dtype(
    [
        ("places", np.uint64), ("out", np.uint64), ("plane", np.int32, MAX_BANDS), ("scale", np.float32, MAX_BANDS),
        ("bias", np.float32, MAX_BANDS), ("channels", np.int32), ("window_h", np.int32), ("window_w", np.int32),
        ("padding", np.int32), ("windows", np.int32),
    ],
    align=True,
)  # fmt: skip
SCATTER = np.dtype(
    [("places", np.uint64), ("logits", np.uint64), ("elements", np.int64), ("windows", np.int32)], align=True
)
STITCH = np.dtype(
    [
        *((name, np.uint64) for name in ("logits", "weight_y", "weight_x", "labels", "confidence", "status")),
        ("labels_stride", np.int64), ("confidence_stride", np.int64),
        *(
            (name, np.int32)
            for name in ("height", "width", "window_h", "window_w", "stride_h", "stride_w", "rows", "columns",
                         "logits_h", "logits_w", "classes", "ring", "pitch", "held0", "held1", "row0", "row1",
                         "ratio_log2_h", "ratio_log2_w")
        ),
        ("cut", np.float32),
    ],
    align=True,
)  # fmt: skip
CONFIDENCE = np.dtype([("confidence", np.uint64), ("out", np.uint64), ("count", np.int64)], align=True)
CONFIDENCE_KERNEL, CONFIDENCE_BLOCK = "tile_confidence_u8", (256, 1, 1)
Dim = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """kernel: its extern "C" name.  argument: the one struct that it takes, a numpy record of the C layout.

    shared: bytes that the threads of a block share.
    """

    kernel: str
    grid: Dim
    block: Dim
    argument: np.void
    shared: int = 0


def place(
    image: int,
    size: tuple[int, int],
    strides: tuple[int, int, int],
    top: int,
    lefts: Sequence[int],
    window: tuple[int, int],
    logits: Sequence[int],
    arrived: int,
    first_row: int = 0,
    margin: Margin = NO_MARGIN,
) -> np.ndarray[Any, np.dtype[np.void]]:
    """Where windows of one row of windows lie, and where their logits go: one record of PLACE each.

    image: address of row `first_row` of an image (height, width, C) uint8, with all rows that the windows need from
    there on.  strides: bytes from row to row, pixel to pixel and channel to channel, negative ones too.
    top, lefts, window: where the windows lie, less their margin, see `engines.tiling.core.gather`, and their (height,
    width).
    logits: addresses, one a window; 0 for none.  arrived: address of an int32, 1 more with each window's logits.
    Raises DeployError when a window reaches out of the image or above `first_row`.
    """
    require_addresses("gather", image=image)
    require_inside((top,), lefts, window, margin, size)
    if max(size) > MAX_PIXELS:
        raise DeployError(f"gather: got an image of {size[1]}x{size[0]}, expected sides of {MAX_PIXELS} at most")
    if not 0 <= first_row <= max(top - margin[0], 0):
        raise DeployError(f"gather: got an image from row {first_row} on, expected 0 to the window's top, {top}")
    records = np.zeros(len(lefts), PLACE)
    for name, value in {
        "image": image, "logits": logits, "arrived": arrived, "stride_y": strides[0], "stride_x": strides[1],
        "stride_c": strides[2], "height": size[0], "width": size[1], "first_row": first_row, "top": top - margin[0],
        "left": [left - margin[1] for left in lefts],
    }.items():  # fmt: skip
        records[name] = value
    return records


def gather(
    places: int,
    windows: int,
    window: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    order: Sequence[int],
    padding: str,
    out: int,
    dtype: str,
) -> Launch:
    """Windows as network inputs (n, C, h, w), the same bits as `engines.tiling.core.gather`.

    places: address of n records of `place`.  windows: n, 1 to 64.  window: (height, width).  mean, std: by *output*
    channel, on the 0..255 scale.  order: image channel of each output channel.  padding: zero, edge or reflect.
    out: address of n * C * h * w contiguous values of `dtype`, float32 or float16 (rounded to the nearest).
    Raises DeployError when a value is out of range.
    """
    require_addresses("gather", places=places, out=out)
    if padding not in PADDINGS:
        raise DeployError(f"gather: got padding {padding!r}, expected one of {', '.join(PADDINGS)}")
    count = len(mean)
    order = check_order(order, count)
    _windows("gather", windows)
    scale, bias = normalisation(mean, std)
    channels = [list(order).index(channel) for channel in range(count)]  # the plane that each becomes
    argument = record(
        GATHER, places=places, out=out, plane=_filled(channels), scale=_filled(scale[channels]),
        bias=_filled(bias[channels]), channels=count, window_h=window[0], window_w=window[1],
        padding=PADDINGS.index(padding), windows=windows,
    )  # fmt: skip
    columns = -(-window[1] // GATHER_PIXELS)
    grid = (-(-columns // GATHER_BLOCK[0]), min(-(-window[0] // GATHER_BLOCK[1]), _GRID_Y), windows)
    kernel = "tile_gather" if count == 3 else "tile_gather_bands"
    return Launch(f"{kernel}_{_suffix('gather', dtype)}", grid, GATHER_BLOCK, argument)


def scatter(places: int, windows: int, logits: int, elements: int, dtype: str) -> Launch:
    """Copies the logits of each window, `elements` values of `dtype` from `logits` on, to where its place says."""
    require_addresses("scatter", places=places, logits=logits)
    _windows("scatter", windows)
    argument = record(SCATTER, places=places, logits=logits, elements=elements, windows=windows)
    itemsize = np.dtype(dtype).itemsize
    blocks = max(1, elements * itemsize // (SCATTER_BYTES * SCATTER_BLOCK[0]))
    return Launch(f"tile_scatter_{_suffix('scatter', dtype)}", (blocks, 1, windows), SCATTER_BLOCK, argument)


def _windows(name: str, count: int) -> None:
    if not 1 <= count <= MAX_WINDOWS:
        raise DeployError(f"{name}: got {count} windows, expected 1 to {MAX_WINDOWS}; launch several times")


def _filled(values: Sequence[float] | Float32) -> list[float]:
    """As long as the launch's arrays; what is beyond the channels is not read."""
    return [*values, *[0] * (MAX_BANDS - len(values))]


def stitch(
    logits: int,
    dtype: str,
    low: tuple[int, int],
    classes: int,
    ring: int,
    pitch: int,
    tiling: Tiling,
    size: tuple[int, int],
    rows: tuple[int, int],
    held: range,
    weights: tuple[int, int] | None,
    labels: int,
    labels_stride: int,
    confidence: int | None,
    confidence_stride: int,
    status: int,
    threshold: float = THRESHOLD,
    means: int = 0,
) -> Launch:
    """Labels of rows [r0, r1) of an image `size` (height, width), the same bits as `engines.tiling.core.stitch`.

    logits: address of the windows' logits, each (classes, *low) contiguous values of `dtype`; those of row r and
    column c of windows at index r % ring * pitch + c.  Windows lie where `tiling` places them; of their rows only
    those in `held` are read, which must not be more than `ring`.
    weights: addresses of float32, as many as rows and columns are labelled, or None for the plain mean.
    labels: address of uint8 at row r0, column 0; labels_stride: bytes from row to row.  confidence: the same in
    float32, its stride in elements; 0 or None for none.
    status: address of an int32; bit NOT_FINITE is set where a logit or a sum is NaN or infinite, bit UNCOVERED where a
    pixel lies in no held window; never cleared.
    threshold: of the probability of one class alone, see `engines.tiling.core.stitch`.
    means: address of float32 (classes, r1 - r0, width), which takes the mean logits; labels and confidence are 0 then.
    Raises DeployError when a value is out of range.
    """
    require_addresses("stitch", logits=logits, labels=means or labels, status=status)
    if not 1 <= classes <= 255 or min(low) < 1:
        raise DeployError(f"stitch: got logits {(classes, *low)}, expected 1 to 255 classes and at least one value")
    if not 0 <= rows[0] < rows[1] <= size[0] or max(size) > MAX_PIXELS:
        raise DeployError(f"stitch: got rows {rows[0]}..{rows[1]} of an image {size}, expected a part of it")
    tops, lefts = tiling.placements(*size)
    if held.step != 1 or not 0 <= held.start < held.stop <= len(tops) or len(held) > ring or pitch < len(lefts):
        raise DeployError(
            f"stitch: got {held} held in a ring of {ring} rows of {pitch} windows, expected a part of "
            f"{len(tops)} rows that fits, of {len(lefts)} windows each"
        )
    if labels_stride < size[1] or (confidence and confidence_stride < size[1]):
        raise DeployError(f"stitch: got strides {labels_stride} and {confidence_stride}, expected {size[1]} or more")
    if weights is not None:
        require_addresses("stitch", weight_y=weights[0], weight_x=weights[1])
    window = tiling.labelled
    ratios = _ratio_log2(window[0], low[0]), _ratio_log2(window[1], low[1])
    argument = record(
        STITCH, logits=logits, weight_y=weights[0] if weights else 0, weight_x=weights[1] if weights else 0,
        labels=labels, confidence=means or confidence or 0, status=status, labels_stride=labels_stride,
        confidence_stride=confidence_stride, height=size[0], width=size[1], window_h=window[0],
        window_w=window[1], stride_h=tiling.stride_h, stride_w=tiling.stride_w, rows=len(tops),
        columns=len(lefts), logits_h=low[0], logits_w=low[1], classes=classes, ring=ring, pitch=pitch,
        held0=held.start, held1=held.stop, row0=rows[0], row1=rows[1], ratio_log2_h=ratios[0], ratio_log2_w=ratios[1],
        cut=cut_of(threshold),
    )  # fmt: skip
    way, patch = _way(ratios, (tops, lefts), weights is not None)
    kind = "_means" if means else "_threshold" if classes == 1 else "_confidence" if confidence else ""
    options = f"{'_weighted' if weights else ''}{kind}"
    name = f"tile_stitch_{way}{options}_{_suffix('stitch', dtype)}"
    first = rows[0] // patch[0] * patch[0]  # patches start at multiples of their size, whatever the band
    columns, lines, _ = grid_of((rows[1] - first, size[1]), patch)
    return Launch(name, (columns, lines, -(-classes // MEANS_CLASSES) if means else 1), STITCH_BLOCK, argument)


def confidence_bytes(confidence: int, out: int, count: int) -> Launch:
    """`count` float32 as bytes, as `engines.images.write.confidence_bytes` rounds them.  confidence, out: addresses."""
    require_addresses("confidence", confidence=confidence, out=out)
    argument = record(CONFIDENCE, confidence=confidence, out=out, count=count)
    return Launch(CONFIDENCE_KERNEL, (-(-count // CONFIDENCE_BLOCK[0]), 1, 1), CONFIDENCE_BLOCK, argument)


def record(layout: np.dtype[np.void], **values: Any) -> np.void:
    """One of `layout`, its other fields 0."""
    made = np.zeros(1, layout)
    for name, value in values.items():
        made[name] = value
    row: np.void = made[0]
    return row


def _way(ratios: tuple[int, int], places: tuple[list[int], list[int]], weighted: bool) -> tuple[str, tuple[int, int]]:
    """Which of the three kernels, fastest first, and the rows and columns that one of its threads owns."""
    if ratios == (2, 2) and not weighted and all(place % 4 == 0 for axis in places for place in axis):
        return "quarter", STITCH_PATCH
    if ratios[0] >= 2 and 2 <= ratios[1] <= MAX_PHASES_LOG2:
        return "whole", STITCH_PATCH
    return "any", STITCH_STRIP


def grid_of(size: tuple[int, int], patch: tuple[int, int] = (1, 1)) -> Dim:
    """Blocks of STITCH_BLOCK for (height, width) pixels, of which each thread has a patch."""
    blocks = [
        -(-pixels // (each * block)) for pixels, each, block in zip(size, patch, STITCH_BLOCK[1::-1], strict=True)
    ]
    return (blocks[1], min(blocks[0], _GRID_Y), 1)


def _ratio_log2(window: int, low: int) -> int:
    """log2(window / low) where that is whole, else -1."""
    ratio = window // low
    return ratio.bit_length() - 1 if ratio * low == window and ratio.bit_count() == 1 else -1


def _suffix(name: str, dtype: str) -> str:
    if dtype not in SUFFIX:
        raise DeployError(f"{name}: got {dtype} on the GPU, expected {' or '.join(SUFFIX)}; build the engine with one")
    return SUFFIX[dtype]


def require_addresses(name: str, **addresses: int) -> None:
    """Raise DeployError unless all may lie in a GPU's memory."""
    for what, address in addresses.items():
        if not 0 < address < 2**64:
            raise DeployError(f"{name}: got address {address} for {what}, expected one of the GPU's memory")
