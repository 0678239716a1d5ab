"""Inputs that a photograph of a fine day does not stand for, made from it: what an engine must survive as well.

A network that passes on one picture may overflow FP16 on a brighter one.  Ranges and gates therefore see, besides the
sample, what cameras do in bad light, and what no scene has: the corners of the input's range and its highest frequency.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from engines.contract import Float32, UInt8
from engines.errors import GateError
from engines.proof.agreement import ANY, Agreement, Gate, compare_logits
from engines.spec import ModelSpec
from engines.tiling import core
from engines.tiling.placement import Tiling

GRID = 32  # of a stress window's logits no more than this many points a side are kept: 78 KB a window for 19 classes
STEP = "stress"  # of an engine's agreement, and of the log
NAMES = ("mosaic", "brightened", "darkened", "inverted", "saturated", "noise", "all 0", "all 255", "checkerboard")
# Of these the first are pictures still, on which an engine has to agree.  On the others it only has to be finite: what
# a network makes of a checkerboard is mostly rounding, whatever the precision (measured on a trained CGNet: fp16 and
# bf16 are off by 43 and 160 % of the spread there, by 1 and 5 % on the pictures, and right on photographs).
PICTURES = 4
MIN_LABELS = 0.99  # of decided ones on those: the network was trained for none of them


def stress_images(image: UInt8, height: int, width: int) -> list[UInt8]:
    """An image of one window for each of NAMES, (height, width, C) uint8, made from the first window of `image`.

    The first, the mosaic, shows a part of each of the others.
    """
    image = image[:height, :width]
    rest = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
    full = np.pad(image, rest, "symmetric")  # not the runtime's padding: all of the window is to be under stress
    noise = np.random.default_rng(0).integers(0, 256, full.shape, np.uint8)
    rows, columns = np.indices((height, width))
    board = np.repeat((((rows // 8 + columns // 8) & 1) * 255).astype(np.uint8)[:, :, None], full.shape[2], 2)
    made = [
        np.minimum(full.astype(np.uint16) * 2, 255).astype(np.uint8),
        full // 4,
        255 - full,
        np.where(full > full.mean((0, 1)), np.uint8(255), np.uint8(0)),
        noise,
        np.zeros_like(full),
        np.full_like(full, 255),
        board,
    ]
    return [_mosaic(made), *made]


def stress_windows(image: UInt8, spec: ModelSpec, tiling: Tiling) -> list[Float32]:
    """The network inputs (1, C, h, w) of `stress_images`."""
    size = (tiling.window_h, tiling.window_w)
    return [
        core.gather(each, 0, 0, size, spec.mean, spec.std, order=spec.order, padding=tiling.padding)[None]
        for each in stress_images(image, *size)
    ]


def compare_stress(
    step: str,
    got: Iterable[Float32],
    reference_name: str,
    reference: Float32,
    gate: Gate,
    threshold: float | None = None,
) -> Agreement:
    """Compare full logits (1, K, h, w) on the first of the stress inputs with a grid (S, K, gh, gw) of the reference's.

    An input on which the reference itself is not finite says nothing, and is left out.
    Raises GateError outside `gate` (see `on_stress`), or naming the first input on which they are not finite.
    """
    kept, wanted = [], []
    for name, logits, known in zip(NAMES, got, reference, strict=False):
        bad = int(np.count_nonzero(~np.isfinite(logits)))
        if not np.isfinite(known).all():
            continue
        if bad:
            raise GateError(
                f"{step}: {bad} of {logits.size} logits are NaN or infinite on the sample's variant '{name}', while "
                f"{reference_name} is finite"
            )
        if name in NAMES[:PICTURES]:
            kept.append(grid(logits))
            wanted.append(known[None])
    if not kept:
        return Agreement(step, reference_name, labels=1.0)
    agreement = compare_logits(step, np.concatenate(kept), reference_name, np.concatenate(wanted), gate, threshold)
    agreement.require(gate)
    return agreement


def on_stress(gate: Gate, precision: str) -> Gate:
    """What `gate` becomes on stress inputs.  8 bits clip what no calibration photograph shows, and that is meant."""
    return ANY if precision in ("int8", "fp8") else replace(gate, min_labels=min(gate.min_labels, MIN_LABELS))


def grid(logits: Float32) -> Float32:
    """Logits (M, K, h, w) at no more than GRID points a side."""
    step = max(1, -(-max(logits.shape[2:]) // GRID))
    return logits[:, :, ::step, ::step]


def _mosaic(images: list[UInt8]) -> UInt8:
    """Two rows of tiles, each showing what its image has there."""
    height, width = images[0].shape[:2]
    result, columns = images[0].copy(), len(images) // 2
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        rows = slice(row * height // 2, (row + 1) * height // 2)
        part = slice(column * width // columns, (column + 1) * width // columns)
        result[rows, part] = image[rows, part]
    return result
