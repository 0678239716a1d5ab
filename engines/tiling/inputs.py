"""Windows of an image as the network's inputs, prepared as its spec and its tiling say."""

from __future__ import annotations

from engines.contract import Float32, UInt8
from engines.spec import ModelSpec
from engines.tiling import core
from engines.tiling.device import LazyRows
from engines.tiling.placement import Tiling


def window_input(
    image: UInt8 | LazyRows, top: int, left: int, spec: ModelSpec, tiling: Tiling, out: Float32 | None = None,
    threads: int = 0,
) -> Float32:  # fmt: skip
    """The window (C, h, w) float32 that `tiling` puts at (top, left) of `image`, as `engines.tiling.core.gather`."""
    rows, first = image[seen(top, tiling)], seen(top, tiling).start
    return core.gather(
        rows, top - first, left, (tiling.window_h, tiling.window_w), spec.mean, spec.std, order=spec.order,
        padding=tiling.padding, out=out, threads=threads, margin=tiling.margin,
    )  # fmt: skip


def seen(top: int, tiling: Tiling) -> slice:
    """The rows of an image that a window at `top` sees."""
    before = tiling.margin[0]
    return slice(max(top - before, 0), top - before + tiling.window_h)
