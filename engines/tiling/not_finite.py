"""Logits that are NaN or infinite: which window of the image they are of, and what the reason most likely is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from engines.contract import UInt8
from engines.errors import DeployError, GpuLostError, NotFiniteError
from engines.tiling.device import Device, LazyRows
from engines.tiling.inputs import window_input
from engines.tiling.placement import WindowRow


def explained(
    device: Device, windows: Iterable[tuple[UInt8 | LazyRows, Sequence[WindowRow]]], precision: str
) -> NotFiniteError:  # fmt: skip
    """The error to raise where `windows` gave such logits.  Runs them again, one by one, up to the first.

    windows: whole images, (H, W, 3) uint8 RGB, and rows of windows on each.  precision: of the engine.
    Raises GpuLostError.
    """
    where = "of a window that is finite when it is run again"
    try:
        where = next(filter(None, (_first(device, image, rows) for image, rows in windows)), where)
    except GpuLostError:
        raise
    except DeployError as error:
        where = f"of a window that cannot be told ({error})"
    return NotFiniteError(f"the engine's logits are NaN or infinite, {where}: {_cause(precision)}")


def _first(device: Device, image: UInt8 | LazyRows, rows: Sequence[WindowRow]) -> str | None:
    """The first such window of `rows`, in words; None where there is none."""
    spec, tiling = device.spec, device.tiling
    size = tiling.labelled
    windows = np.zeros((device.batch, len(spec.mean), tiling.window_h, tiling.window_w), np.float32)
    for row in rows:
        for column, left in enumerate(row.lefts):
            window_input(image, row.top, left, spec, tiling, out=windows[0])
            bad = ~np.isfinite(device.session.run(windows)[0])
            if bad.any():
                bottom, right = min(row.top + size[0], image.shape[0]), min(left + size[1], image.shape[1])
                box = f"pixels x {left} to {right}, y {row.top} to {bottom}"
                return f"in the window of row {row.index + 1}, column {column + 1} ({box}; {bad.mean():.2%} of it)"
    return None


def _cause(precision: str) -> str:
    if precision == "fp32":
        return "check the weights, mean and std of the model that the bundle was built from"
    return (
        f"most likely an overflow of {precision} on this picture, which the build did not see; build again with it "
        "among the photographs of --calib, or with --precision fp32"
    )
