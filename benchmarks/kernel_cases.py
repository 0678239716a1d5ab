"""Launches of every kernel on odd sizes, compared with the C core bit by bit, on whatever runs kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks import view_cases
from engines.contract import packed
from engines.gpu import kernels
from engines.gpu.kernels import Launch
from engines.gpu.tail import tail as launch_tail
from engines.spec import MAX_BANDS
from engines.tiling import core
from engines.tiling.placement import NO_MARGIN, Margin, Tiling
from engines.tiling.tail import Tail, TailShape

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CANARY = 77


class Machine(Protocol):
    """A GPU, or the emulated one of the tests."""

    def put(self, array: NDArray[np.generic]) -> int:
        """The address of a copy of a C-contiguous array, aligned to 256 bytes."""

    def take(self, array: NDArray[np.generic], address: int) -> None:
        """Fill a C-contiguous array."""

    def launch(self, launch: Launch) -> None: ...


@dataclass(frozen=True)
class GatherCase:
    """view: how the image lies in memory, see `_view`; ``bands`` are as many as the order has.

    strip: it begins with the first row that the windows need.

    offset: elements by which the output is not aligned.  margin: of the window, around the place, see `Tiling.margin`.
    """

    size: tuple[int, int]
    top: int
    lefts: tuple[int, ...]
    window: tuple[int, int]
    view: str = "plain"
    order: tuple[int, ...] = (0, 1, 2)
    padding: str = "zero"
    strip: bool = False
    offset: int = 0
    margin: Margin = NO_MARGIN

    def differences(self, machine: Machine, dtype: str) -> int:
        """Values that are not the C core's, and values written beside the windows."""
        base, image = _view(self.view, *self.size, len(self.order))
        mean, std = ((*values, *range(20, 20 + MAX_BANDS))[: len(self.order)] for values in (MEAN, STD))
        first = max(0, self.top - self.margin[0]) if self.strip else 0
        memory = machine.put(base) + image[first:].__array_interface__["data"][0] - base.ctypes.data
        shape = (len(self.lefts), len(self.order), *self.window)
        canvas = np.full(self.offset + int(np.prod(shape)) + 5, CANARY, dtype)
        out = machine.put(canvas)
        places = kernels.place(
            memory, self.size, image.strides, self.top, self.lefts, self.window, [0] * len(self.lefts), 0, first,
            self.margin,
        )  # fmt: skip
        launch = kernels.gather(
            machine.put(places), len(places), self.window, mean, std, self.order, self.padding,
            out + self.offset * canvas.itemsize, dtype,
        )  # fmt: skip
        machine.launch(launch)
        machine.take(canvas, out)
        how: dict[str, Any] = {"order": self.order, "padding": self.padding, "margin": self.margin}
        expected = [core.gather(image, self.top, left, self.window, mean, std, **how) for left in self.lefts]
        inner = canvas[self.offset : -5].reshape(shape)
        wrong = _unequal(inner, np.stack(expected).astype(dtype))
        return wrong + int((canvas[: self.offset] != CANARY).sum() + (canvas[-5:] != CANARY).sum())


@dataclass(frozen=True)
class ScatterCase:
    """Windows of so many elements to places in another order, each `offset` elements after a multiple of 256 bytes.

    One is run for nothing.
    """

    windows: int
    elements: int
    offset: int = 0

    def differences(self, machine: Machine, dtype: str) -> int:
        rng = np.random.default_rng(6)
        logits = rng.standard_normal((self.windows, self.elements)).astype(dtype)
        pitch = self.offset + -(-self.elements // 128) * 128 + 128
        canvas, arrived = np.full((self.windows, pitch), CANARY, dtype), np.zeros(2, np.int32)
        out, counts, order = machine.put(canvas), machine.put(arrived), rng.permutation(self.windows)
        wanted = [out + (int(i) * pitch + self.offset) * canvas.itemsize for i in order]
        wanted[-1] *= self.windows == 1
        places = kernels.place(256, (9, 9), (27, 3, 1), 0, [0] * self.windows, (9, 9), wanted, counts)
        launch = kernels.scatter(machine.put(places), self.windows, machine.put(logits), self.elements, dtype)
        machine.launch(launch)
        machine.take(canvas, out)
        machine.take(arrived, counts)
        expected = np.full_like(canvas, CANARY)
        there = [(row, to) for row, (to, address) in enumerate(zip(order, wanted, strict=True)) if address]
        for row, to in there:
            expected[to, self.offset : self.offset + self.elements] = logits[row]
        return _unequal(canvas, expected) + int(tuple(arrived) != (len(there), 0))


@dataclass(frozen=True)
class StitchCase:
    """extra: columns beside the image in each row of the output."""

    classes: int
    low: tuple[int, int]
    tiling: Tiling
    size: tuple[int, int]
    seed: int = 0
    extra: int = 0
    threshold: float = 0.5

    def differences(self, machine: Machine, dtype: str, confidence: bool, bands: bool) -> int:
        """Values that are not the C core's, and values written beside the image.

        bands: stitched row of windows by row, with a ring that holds no more than it must.
        """
        steps = self.tiling.window_rows(*self.size)
        logits = self.logits(dtype)
        weights = core.blend_weights(self.tiling.blend, *self.tiling.labelled)
        ring = max(len(step.held) for step in steps) if bands else len(steps)
        pitch = len(steps[0].lefts) + bands
        memory = np.full((ring, pitch, self.classes, *self.low), np.nan, dtype)  # reading what is not held shows
        shape = (self.size[0], self.size[1] + self.extra)
        outputs = np.full(shape, CANARY, np.uint8), np.full(shape, CANARY, np.float32)
        status = np.zeros(1, np.int32)
        at = [machine.put(array) for array in (*outputs, status)]
        weights_at = (machine.put(weights[0]), machine.put(weights[1])) if weights else None
        for step in steps:
            memory[step.index % ring, : len(step.lefts)] = logits[step.index]
            if not bands and step is not steps[-1]:
                continue
            rows, held = (step.rows, step.held) if bands else ((0, self.size[0]), range(len(steps)))
            launch = kernels.stitch(
                machine.put(memory), dtype, self.low, self.classes, ring, pitch, self.tiling, self.size, rows, held,
                weights_at, at[0] + rows[0] * shape[1], shape[1],
                at[1] + 4 * rows[0] * shape[1] if confidence else 0, shape[1], at[2],
                self.threshold,
            )  # fmt: skip
            machine.launch(launch)
        for array, address in zip((*outputs, status), at, strict=True):
            machine.take(array, address)
        labels, certainty = self.expected(logits, confidence)
        wrong = int(status[0] != 0) + _unequal(outputs[0][:, : self.size[1]], labels)
        wrong += int((outputs[0][:, self.size[1] :] != CANARY).sum() + (outputs[1][:, self.size[1] :] != CANARY).sum())
        inner = outputs[1][:, : self.size[1]]
        return wrong + (int((inner != CANARY).sum()) if certainty is None else _unequal(inner, certainty))

    def logits(self, dtype: str) -> NDArray[np.generic]:
        """(rows of windows, windows in each, K, h, w)."""
        tops, lefts = self.tiling.placements(*self.size)
        rng = np.random.default_rng(self.seed)
        return (3 * rng.standard_normal((len(tops), len(lefts), self.classes, *self.low))).astype(dtype)

    def expected(self, logits: NDArray[np.generic], confidence: bool) -> tuple[core.UInt8, core.Float32 | None]:
        tops, lefts = self.tiling.placements(*self.size)
        windows = [np.ascontiguousarray(window, np.float32) for row in logits for window in row]
        size = self.tiling.labelled
        return core.stitch(
            windows, [top for top in tops for _ in lefts], lefts * len(tops), size, self.size,
            weights=core.blend_weights(self.tiling.blend, *size), confidence=confidence, threshold=self.threshold,
        )  # fmt: skip


@dataclass(frozen=True)
class TailCase:
    """A decoder's tail on random maps."""

    shape: TailShape
    windows: int = 1

    def differences(self, machine: Machine, dtype: str) -> int:
        """Values that are not the C core's, and values written beside the logits."""
        tail, maps = self.tail(), self.maps(dtype)
        canvas = np.full(
            self.windows * self.shape.classes * self.shape.height * self.shape.width + 5, CANARY, np.float32
        )
        out = machine.put(canvas)
        weights = [machine.put(array) if array.size else 256 for array in tail.weights]
        machine.launch(launch_tail(self.shape, dtype, machine.put(maps), weights, out, self.windows))
        machine.take(canvas, out)
        expected = tail.logits(maps.astype(np.float32), self.windows)
        return _unequal(canvas[:-5], expected.reshape(-1)) + int((canvas[-5:] != CANARY).sum())

    def tail(self) -> Tail:
        """With weights that keep about half of the hidden values above 0."""
        shape, rng = self.shape, np.random.default_rng(5)
        wanted = (shape.channels, shape.inputs), (shape.channels,), (shape.classes, shape.channels), (shape.classes,)
        return Tail.of(shape, *(rng.normal(size=size).astype(np.float32) for size in wanted))

    def maps(self, dtype: str) -> NDArray[np.generic]:
        """Packed, with NaN where nothing may be read."""
        sizes = [self.windows * int(np.prod(size)) for size in self.shape.outputs]
        offsets, total = packed(sizes)
        maps, rng = np.full(total, np.nan, dtype), np.random.default_rng(6)
        for offset, size in zip(offsets, sizes, strict=True):
            maps[offset : offset + size] = rng.normal(size=size)
        return maps


TAILS = [
    TailCase(TailShape(32, 64, 32, 64, 19, ((16, 32), (8, 16), (4, 8)))),  # SegFormer's
    TailCase(TailShape(9, 130, 8, 36, 9, ((5, 65), (3, 33))), 3),  # no whole ratios, no whole blocks or chunks
    TailCase(TailShape(5, 7, 0, 4, 1, ((5, 7), (1, 1)))),  # nothing to project, a map of full size, one class alone
    TailCase(TailShape(3, 65, 4, 100, 150, ())),  # nothing resized, many classes
    TailCase(TailShape(4, 96, 64, 32, 80, ((2, 48), (1, 24), (4, 12), (1, 96), (3, 3)))),
    TailCase(TailShape(6, 70, 12, 68, 41, ((3, 35),)), 2),
    TailCase(TailShape(2, 3, 4, 4, 8, ((1, 2),))),
    TailCase(TailShape(2, 3, 4, 4, 2, ((2, 2),))),
    TailCase(TailShape(6, 200, 8, 40, 20, ((3, 100), (2, 50), (1, 25), (6, 200))), 2),  # whole ratios, half a block
    TailCase(TailShape(3, 136, 16, 36, 12, ((3, 68), (3, 34), (1, 17), (2, 8), (1, 1))), 2),  # 17 times no ratio
    TailCase(TailShape(2, 8, 0, 32, 24, ((1, 1), (2, 2), (1, 4)))),  # columns that are first and last at once
]
SCATTERS = [
    ScatterCase(1, 1), ScatterCase(3, 5 * 16 * 24), ScatterCase(4, 1023), ScatterCase(2, 19 * 64 * 64, 8),
    ScatterCase(5, 77, 3), ScatterCase(64, 9),
]  # fmt: skip
GATHERS = [
    GatherCase((50, 70), 0, (0, 3, 38), (48, 32)),
    GatherCase((50, 70), 2, (0, 1, 2, 3, 4, 5, 6, 7), (47, 63)),  # every place in a word; odd rows
    GatherCase((50, 70), 10, (0, 30), (40, 40), strip=True),
    GatherCase((64, 64), 0, tuple(range(64)), (64, 1)),
    GatherCase((64, 64), 3, (0, 1, 2, 3), (60, 60), offset=1),
    GatherCase((50, 70), 2, (1, 2), (48, 64), order=(2, 1, 0)),
    GatherCase((50, 70), 2, (1, 2), (48, 64), order=(1, 2, 0)),
    *(
        GatherCase((40, 50), 5, (0, 3, 10), (30, 40), view=view, order=(2, 1, 0), strip=strip)
        for view in ("flipped", "mirrored", "bgr", "subsampled", "planar", "four", "six", "transposed", "unaligned")
        for strip in (False, True)
    ),
    GatherCase((41, 51), 1, (0, 1, 2, 3), (40, 48), view="unaligned"),  # to the last byte of the image
    GatherCase((41, 51), 1, (0, 1, 2, 3), (40, 48), view="clipped"),
    *(
        GatherCase(size, 0, (0,), (66, 96), padding=padding, view=view)
        for size in ((50, 70), (3, 2), (1, 1), (1, 40), (64, 5), (65, 96), (66, 95), (66, 93))
        for padding in ("zero", "edge", "reflect")
        for view in ("plain", "four")
    ),
    *(
        GatherCase(size, top, (0, 3), (30, width), view="bands", order=tuple(range(count))[::-1], padding=padding)
        for count in (1, 2, 4, 13)
        for size, top, width, padding in (((40, 50), 5, 40, "zero"), ((40, 50), 5, 41, "zero"))
    ),
    *(
        GatherCase((20, 30), 0, (0,), (33, 41), view="bands", order=order, padding=padding, offset=1)
        for order in ((0,), (2, 0, 3, 1))
        for padding in ("zero", "edge", "reflect")
    ),
    GatherCase((40, 50), 6, (0, 3), (30, 40), view="bands", order=tuple(range(MAX_BANDS)), strip=True),
    *(  # around a place of 12 x 20 pixels, at the image's border and inside of it
        GatherCase(size, top, lefts, (24, 35), margin=(5, 9, 7, 6), padding=padding, view=view, order=(2, 0, 1))
        for size, top, lefts in (
            ((40, 50), 0, (0, 11, 30)),
            ((40, 50), 28, (0, 30)),
            ((9, 14), 0, (0,)),
            ((1, 1), 0, (0,)),
        )
        for padding in ("zero", "edge", "reflect")
        for view in ("plain", "four", "bands")
    ),
    GatherCase((80, 50), 30, (0, 30), (24, 35), margin=(5, 9, 7, 6), strip=True),
]
STITCHES = [
    StitchCase(19, (16, 16), Tiling(64, 64, 48, 48), (112, 160)),  # a quarter, as SegFormer, all at multiples of 4
    StitchCase(19, (16, 24), Tiling(64, 96, 48, 64), (20, 90), extra=3),  # one window, smaller image
    StitchCase(7, (16, 16), Tiling(64, 64, 16, 12), (96, 100)),  # up to twenty windows over a pixel
    StitchCase(19, (16, 24), Tiling(64, 96, 48, 64), (111, 333), extra=1),  # the last windows anywhere
    *(StitchCase(3, (8, 8), Tiling(32, 32, 24, 24), (57 + i, 60 + i), seed=i) for i in range(4)),
    StitchCase(3, (8, 8), Tiling(32, 32, 17, 23), (99, 99)),
    StitchCase(19, (8, 8), Tiling(64, 64, 48, 48), (100, 131)),  # an eighth
    StitchCase(5, (8, 8), Tiling(64, 64, 33, 41), (99, 130)),
    StitchCase(5, (4, 8), Tiling(64, 64, 48, 48), (160, 150)),  # a sixteenth down, an eighth across
    StitchCase(3, (2, 2), Tiling(64, 64, 40, 27), (99, 131)),  # a thirty-second
    StitchCase(3, (2, 2), Tiling(128, 128, 100, 100), (130, 230)),  # a sixty-fourth
    StitchCase(5, (64, 64), Tiling(64, 64, 48, 48), (100, 70)),  # full resolution
    StitchCase(3, (32, 32), Tiling(64, 64, 40, 48), (101, 147), extra=1),  # a half
    StitchCase(4, (32, 16), Tiling(64, 64, 40, 48), (101, 147)),  # a half down, a quarter across
    StitchCase(3, (17, 23), Tiling(61, 90, 40, 70), (150, 200)),  # not a whole ratio
    StitchCase(3, (90, 70), Tiling(60, 61, 40, 50), (99, 99)),  # logits finer than pixels
    StitchCase(4, (20, 10), Tiling(60, 60, 40, 50), (99, 131)),  # whole ratios that are no powers of two
    StitchCase(4, (1, 1), Tiling(16, 16, 12, 12), (1, 100)),
    StitchCase(1, (8, 8), Tiling(32, 32, 32, 32), (32, 32)),
    StitchCase(2, (8, 8), Tiling(32, 32, 20, 20), (1, 1)),
    StitchCase(150, (8, 8), Tiling(32, 32, 24, 24), (45, 70)),
    StitchCase(255, (8, 8), Tiling(32, 32, 24, 24), (33, 37)),
    *(
        StitchCase(6, low, Tiling(64, 64, 40, 48, blend), (90, 113))
        for low in ((16, 16), (8, 4), (64, 64), (20, 30))
        for blend in ("gaussian", "hann")
    ),
    StitchCase(6, (16, 16), Tiling(64, 64, 48, 48, "gaussian"), (112, 160)),
    StitchCase(3, (44, 40), Tiling(64, 64, 44, 40, margin=(10, 12, 10, 12)), (90, 113)),  # not padded
    *(  # one class alone, in every kernel
        StitchCase(1, low, Tiling(64, 64, stride, stride, blend), size, threshold=threshold, extra=1)
        for low in ((16, 16), (8, 8), (64, 64), (20, 30))
        for stride, blend, size, threshold in (
            (48, "uniform", (112, 160), 0.5),
            (48, "uniform", (112, 160), 0.3),
            (40, "uniform", (90, 113), 0.9),
            (40, "gaussian", (91, 113), 0.2),
            (48, "uniform", (20, 90), 0.3),
        )
    ),
]


def check(machine: Machine) -> Iterator[tuple[str, int]]:
    """Every case in every variant: what it is, and how many values differ."""
    for dtype in ("float32", "float16"):
        for tail in TAILS:
            yield f"tail {dtype} {tail}", tail.differences(machine, dtype)
        for case in GATHERS:
            yield f"gather {dtype} {case}", case.differences(machine, dtype)
        for scatter in SCATTERS:
            yield f"scatter {dtype} {scatter}", scatter.differences(machine, dtype)
        for stitch in STITCHES:
            for confidence in (False, True):
                for bands in (False, True):
                    yield (
                        f"stitch {dtype} confidence={confidence} bands={bands} {stitch}",
                        stitch.differences(machine, dtype, confidence, bands),
                    )
    yield from view_cases.check(machine)


def _unequal(got: NDArray[np.generic], expected: NDArray[np.generic]) -> int:
    """Values whose bits differ."""
    bits = f"u{got.itemsize}"
    assert got.dtype == expected.dtype
    return int((np.ascontiguousarray(got).view(bits) != np.ascontiguousarray(expected).view(bits)).sum())


def _view(name: str, height: int, width: int, count: int = 3) -> tuple[core.UInt8, core.UInt8]:
    """The memory of an image, one contiguous array without a byte more than the name says, and the image in it."""
    rng = np.random.default_rng(4)

    def pixels(*shape: int) -> core.UInt8:
        return rng.integers(0, 256, shape, np.uint8)

    if name == "bands":
        base = pixels(height, width, count)
        return base, base
    if name == "four":  # of four bytes a pixel, as Pillow's own
        base = pixels(height, width, 4)
        return base, base[:, :, :3]
    if name == "clipped":  # the same without what follows the last pixel
        base = pixels(4 * height * width - 1)
        return base, np.lib.stride_tricks.as_strided(base, (height, width, 3), (4 * width, 4, 1))
    if name == "six":
        base = pixels(height, width, 6)
        return base, base[:, :, 2:5]
    if name == "subsampled":
        base = pixels(2 * height, 3 * width, 3)
        return base, base[::2, 1::3]
    if name == "planar":
        base = pixels(3, height, width)
        return base, base.transpose(1, 2, 0)
    if name == "transposed":
        base = pixels(width, height, 3)
        return base, base.transpose(1, 0, 2)
    if name == "unaligned":  # rows begin anywhere in a word
        base = pixels(height * (3 * width + 1) + 1)
        return base, np.lib.stride_tricks.as_strided(base[1:], (height, width, 3), (3 * width + 1, 3, 1))
    base = pixels(height, width, 3)
    turned = {"plain": base, "flipped": base[::-1], "mirrored": base[:, ::-1], "bgr": base[:, :, ::-1]}
    return base, turned[name]
