"""The field of what has no gradient, an .onnx: pixels change block by block, and the unit in the middle is watched.

A small change with random signs in one block of n pixels moves the unit by the signed sum of its gradient there, whose
mean square is the sum of the gradient's squares: over sqrt(n) it is, on average, the gradient of one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from tqdm import tqdm

from engines.contract import Float32
from engines.errors import DeployError
from pipeline.graph.onnx_graph import run_each
from pipeline.receptive.field import Field
from pipeline.receptive.units import OUTPUT, Grid

BLOCKS = 16  # along each axis: each image takes as many runs as there are, and one
STEP = 0.05  # of the change, where the network's input has a deviation of about one


def perturbed(model: ir.Model, windows: Iterable[Float32], size: tuple[int, int], seed: int = 0) -> Field:
    """Of the output (1, K, h, w) of `model`, averaged over `windows` (1, 3, H, W).  Raises DeployError."""
    rows, columns = (np.linspace(0, side, min(BLOCKS, side) + 1).astype(int) for side in size)
    blocks = [
        (slice(top, bottom), slice(left, right)) for top, bottom in pairwise(rows) for left, right in pairwise(columns)
    ]
    moved, images, grid = np.zeros(len(blocks)), 0, Grid("map", 1, 1)
    for window in windows:
        signs = np.random.default_rng([seed, images])
        answers = run_each(
            model, tqdm(_changed(window, blocks, signs), total=len(blocks) + 1, disable=None, leave=False)
        )
        first = next(answers)
        grid = Grid("map", *first.shape[2:])
        mix = np.random.default_rng([seed, images]).choice((-1.0, 1.0), first.shape[1])
        centre = (0, slice(None), grid.height // 2, grid.width // 2)
        moved += [abs(float((answer[centre] - first[centre]) @ mix)) / STEP for answer in answers]
        images += 1
    if not np.isfinite(moved).all() or moved.sum() <= 0:
        raise DeployError(
            f"receptive field: got no change of the {OUTPUT} (or NaN) by changes of any pixel on {images} image(s), "
            "expected a network that answers to its image; give the checkpoint or the factory that it was trained as"
        )
    gradient = np.zeros(size)
    for block, value in zip(blocks, moved, strict=True):
        gradient[block] = value / gradient[block].size ** 0.5
    stride, middle = grid.over(size)
    return Field(OUTPUT, gradient / gradient.sum(), stride=stride, centre=middle, images=images)


def _changed(window: Float32, blocks: list[tuple[slice, slice]], signs: np.random.Generator) -> Iterator[Float32]:
    """The window as it is, and once for each block with that block changed; the array is the same one each time."""
    changed = window.copy()
    yield changed
    for rows, columns in blocks:
        piece = window[:, :, rows, columns]
        changed[:, :, rows, columns] = piece + STEP * signs.choice((-1.0, 1.0), piece.shape).astype(np.float32)
        yield changed
        changed[:, :, rows, columns] = piece
