"""The C core on geometry drawn from bytes; its arrays are exactly sized, so that a sanitizer sees one byte more."""

from __future__ import annotations

import ctypes
import os

import numpy as np

from engines.errors import DeployError
from engines.tiling import core
from engines.tiling.placement import BLENDS, PADDINGS, Tiling
from tests.engines import tile_reference

MAX_SIDE = 40
MAX_WINDOWS = 100
COMPARED = 1200  # pixels up to which the oracle, slow as it is, gives its own answer


if "FUZZ_TILING" in os.environ:  # the library under sanitizers, in the place of the one that ships
    _sanitized = ctypes.CDLL(os.environ["FUZZ_TILING"])
    core.ctypes.CDLL = lambda path: _sanitized  # type: ignore[assignment,misc]
    core.library()
    core.ctypes.CDLL = type(_sanitized)  # type: ignore[misc]


class _Draw:
    """Whole numbers from bytes; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __call__(self, low: int, high: int) -> int:
        value = int.from_bytes(self._data[self._at : self._at + 2], "little")
        self._at += 2
        return low + value % (high - low + 1)

    def flag(self) -> bool:
        return bool(self(0, 1))


def exercise(data: bytes) -> None:
    draw = _Draw(data)
    window = draw(0, MAX_SIDE), draw(0, MAX_SIDE)
    stride = draw(0, MAX_SIDE), draw(0, MAX_SIDE)
    size = draw(1, 3 * MAX_SIDE), draw(1, 3 * MAX_SIDE)
    blend, padding = BLENDS[draw(0, 2)], PADDINGS[draw(0, 2)]
    tiling = Tiling(*window, *stride, blend, padding)
    tops, lefts = tiling.placements(*size)
    if len(tops) * len(lefts) > MAX_WINDOWS:
        return
    rng = np.random.default_rng(draw(0, 65535))
    _gather(draw, rng, tiling, size, tops, lefts)
    _stitch(draw, rng, tiling, size, tops, lefts)


def _gather(
    draw: _Draw, rng: np.random.Generator, tiling: Tiling, size: tuple[int, int], tops: list[int], lefts: list[int]
) -> None:
    image = rng.integers(0, 256, (size[0], size[1], 3), np.uint8)
    view = [image, image[::-1], image[:, ::-1], image[:, :, ::-1], image[::2, ::2]][draw(0, 4)]
    order = [draw(0, 2) for _ in range(3)]
    mean, std = rng.normal(100, 50, 3), rng.uniform(1e-3, 99, 3)
    # Not only where the tiling puts windows: a caller's mistake must be an error too.
    top = tops[draw(0, len(tops) - 1)] if draw.flag() else draw(0, 400) - 200
    left = lefts[draw(0, len(lefts) - 1)] if draw.flag() else draw(0, 400) - 200
    window = tiling.window_h, tiling.window_w
    try:
        got = core.gather(view, top, left, window, mean, std, order, tiling.padding, threads=draw(1, 3))
    except DeployError:
        return
    if window[0] * window[1] <= COMPARED:
        wanted = tile_reference.gather(view, top, left, window, mean, std, order, tiling.padding)
        assert np.abs(got - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max()), "gather differs from the oracle"


def _stitch(
    draw: _Draw, rng: np.random.Generator, tiling: Tiling, size: tuple[int, int], tops: list[int], lefts: list[int]
) -> None:
    classes = (1, 2, 3, 19, 150, 255)[draw(0, 5)]
    low = draw(1, 2 * tiling.window_h), draw(1, 2 * tiling.window_w)
    places = [(top, left) for top in tops for left in lefts]
    if draw(0, 9) == 0:
        places = places[draw(0, len(places) - 1) :]  # some windows are missing
    logits = [rng.normal(0, 10, (classes, *low)).astype(np.float32) for _ in places]
    if draw(0, 9) == 0:
        logits[0].flat[draw(0, 65535) % logits[0].size] = (np.nan, np.inf, -np.inf, 3e38)[draw(0, 3)]
    first = draw(0, size[0])
    rows = (first, draw(0, size[0])) if draw.flag() else (0, size[0])
    window = tiling.window_h, tiling.window_w
    weights = core.blend_weights(tiling.blend, *window)
    try:
        labels, _ = core.stitch(
            logits, [top for top, _ in places], [left for _, left in places], window, size, rows, weights,
            confidence=draw.flag(), threads=draw(1, 3), threshold=(threshold := draw(1, 99) / 100),
        )  # fmt: skip
    except DeployError:
        return
    if size[0] * size[1] <= COMPARED and classes <= 19:
        scores = tile_reference.scores(logits, *zip(*places, strict=True), window, size, weights)[:, rows[0] : rows[1]]
        if classes == 1:  # against a logit that is always the threshold's
            scores = np.concatenate([np.full_like(scores, np.log(threshold / (1 - threshold))), scores])
        best = np.sort(scores, 0)
        clear = best[-1] - best[-2] > 1e-4 * np.abs(scores).max()
        assert np.array_equal(labels[clear], scores.argmax(0)[clear]), "stitch differs from the oracle"
