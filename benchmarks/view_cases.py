"""Launches of the kernels of views on odd sizes, compared with the C core bit by bit, on whatever runs kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.gpu.kernels import Launch
from engines.gpu.views.launches import HeldView, Logits, Target, merge, resize, room
from engines.images.resize import resample
from engines.spec import OPENCV
from engines.tiling import core
from engines.tiling.merge import ViewLogits, needed
from engines.tiling.merge import merge as merge_on_host
from engines.tiling.placement import Tiling

CANARY = 77


class Machine(Protocol):
    """See `benchmarks.kernel_cases.Machine`."""

    def put(self, array: NDArray[np.generic]) -> int: ...

    def take(self, array: NDArray[np.generic], address: int) -> None: ...

    def launch(self, launch: Launch) -> None: ...


@dataclass(frozen=True)
class ResizeCase:
    """pixel: bytes from one to the next in memory.  turned: read from the last row and column on."""

    size: tuple[int, int]
    to: tuple[int, int]
    channels: int = 3
    pixel: int = 3
    turned: bool = False

    def differences(self, machine: Machine) -> int:
        """Values that are not the C core's, and values written beside the image."""
        base = np.random.default_rng(4).integers(0, 256, (*self.size, self.pixel), np.uint8)
        image = base[::-1, ::-1, : self.channels] if self.turned else base[:, :, : self.channels]
        at = machine.put(base) + image.__array_interface__["data"][0] - base.ctypes.data
        count = self.to[0] * self.to[1] * self.channels
        canvas = np.full(count + 5, CANARY, np.uint8)
        out = machine.put(canvas)
        strides = (image.strides[0], image.strides[1], image.strides[2])
        machine.launch(resize(at, self.size, strides, self.channels, out, self.to))
        machine.take(canvas, out)
        expected = resample(image, self.to, OPENCV, 1).reshape(-1)
        return int((canvas[:-5] != expected).sum() + (canvas[-5:] != CANARY).sum())


@dataclass(frozen=True)
class ViewCase:
    """Rows of an image from views (height, width, mirrored, share), whose windows `tiling` places.

    rows: of the image that are merged at once.  extra: columns beside the image in each row of the output.
    """

    classes: int
    low: tuple[int, int]
    tiling: Tiling
    size: tuple[int, int]
    views: tuple[tuple[int, int, bool, float], ...]
    kind: str = "mean"
    threshold: float = 0.5
    rows: int = 1000
    extra: int = 0

    def differences(self, machine: Machine, dtype: str, confidence: bool) -> int:
        """Values that are not the C core's, and values written beside the image."""
        weights = core.blend_weights(self.tiling.blend, *self.tiling.labelled)
        at = None if weights is None else (machine.put(weights[0]), machine.put(weights[1]))
        each = [self.logits(index, dtype) for index in range(len(self.views))]
        held = [self._held(index, logits, machine) for index, logits in enumerate(each)]
        shape = (self.size[0], self.size[1] + self.extra)
        outputs = np.full(shape, CANARY, np.uint8), np.full(shape, CANARY, np.float32)
        status, rows = np.zeros(1, np.int32), min(self.rows, self.size[0])
        most = max(room(self.classes, rows, self.size, view[:2]) for view in self.views)
        scratch = np.full(most + 5, np.nan, np.float32), np.full(self.classes * rows * self.size[1], np.nan, np.float32)
        places = [machine.put(array) for array in (*outputs, status, *scratch)]
        for start in range(0, self.size[0], rows):
            end = min(start + rows, self.size[0])
            offset = start * shape[1]
            to = Target(
                labels=places[0] + offset, labels_stride=shape[1],
                confidence=places[1] + 4 * offset if confidence else 0, confidence_stride=shape[1], status=places[2],
                means=places[3], merged=places[4],
            )  # fmt: skip
            views = [replace(view, held=self._touched(view, (start, end))) for view in held]
            logits = Logits(dtype, self.classes, self.low, at)
            for launch in merge(views, logits, self.size, (start, end), to, self.kind, self.threshold):
                machine.launch(launch)
        for array, address in zip((*outputs, status, scratch[0]), places, strict=False):
            machine.take(array, address)
        width = self.size[1]
        wrong = int(status[0] != 0) + int((~np.isnan(scratch[0][-5:])).sum())
        wrong += int((outputs[0][:, width:] != CANARY).sum() + (outputs[1][:, width:] != CANARY).sum())
        labels, certainty = self.expected(each, weights)
        wrong += int((outputs[0][:, :width] != labels).sum())
        inner = np.ascontiguousarray(outputs[1][:, :width])
        return wrong + int((inner.view("u4") != certainty.view("u4")).sum() if confidence else (inner != CANARY).sum())

    def logits(self, index: int, dtype: str) -> NDArray[Any]:
        """Of a view's windows: (rows, columns, K, h, w)."""
        tops, lefts = self.tiling.placements(*self.views[index][:2])
        rng = np.random.default_rng(index)
        return (3 * rng.standard_normal((len(tops), len(lefts), self.classes, *self.low))).astype(dtype)

    def expected(self, each: list[NDArray[Any]], weights: core.Weights | None) -> tuple[core.UInt8, core.Float32]:
        views = []
        for (height, width, mirror, share), logits in zip(self.views, each, strict=True):
            tops, lefts = self.tiling.placements(height, width)
            windows = [np.ascontiguousarray(one.transpose(1, 0, 2), np.float32) for row in logits for one in row]
            views.append(
                ViewLogits(
                    (height, width), self.tiling.labelled, self.low, tops=[top for top in tops for _ in lefts],
                    lefts=lefts * len(tops), rows=windows, first=[0] * len(windows), mirror=mirror, share=share,
                )
            )  # fmt: skip
        labels, certainty = np.empty(self.size, np.uint8), np.empty(self.size, np.float32)
        merge_on_host(
            views, self.size, (0, self.size[0]), labels, certainty, kind=self.kind, weights=weights, threads=1,
            threshold=self.threshold,
        )  # fmt: skip
        return labels, certainty

    def _held(self, index: int, logits: NDArray[Any], machine: Machine) -> HeldView:
        """Beside each row of windows lies one that nothing may be read of."""
        height, width, mirror, share = self.views[index]
        rows, columns = logits.shape[:2]
        memory = np.full((rows, columns + 1, *logits.shape[2:]), np.nan, logits.dtype)
        memory[:, :columns] = logits
        return HeldView(
            (height, width), self.tiling, logits=machine.put(memory), ring=rows, pitch=columns + 1, held=range(rows),
            mirror=mirror, share=share,
        )  # fmt: skip

    def _touched(self, view: HeldView, rows: tuple[int, int]) -> range:
        """Only what the rows are sampled from."""
        first, end = needed(rows, self.size[0], view.size[0])
        steps = view.tiling.window_rows(*view.size)
        found = [step.index for step in steps if step.top < end and step.top + view.tiling.labelled[0] > first]
        return range(found[0], found[-1] + 1)


def _both(height: int, width: int, share: float) -> tuple[tuple[int, int, bool, float], ...]:
    return (height, width, False, share), (height, width, True, share)


SQUARE, WIDE = Tiling(32, 32, 24, 24), Tiling(64, 96, 48, 64)
RESIZES = [
    ResizeCase((50, 70), (75, 105)), ResizeCase((50, 70), (33, 41), pixel=4), ResizeCase((50, 70), (50, 71)),
    ResizeCase((7, 300), (64, 64), turned=True), ResizeCase((1, 1), (5, 7)), ResizeCase((90, 3), (1, 1)),
    ResizeCase((20, 30), (41, 29), 4, 4), ResizeCase((20, 30), (41, 29), 1, 1), ResizeCase((20, 30), (9, 13), 13, 13),
]  # fmt: skip
VIEWS = [
    ViewCase(5, (8, 8), SQUARE, (45, 60), (*_both(45, 60, 0.375), *_both(68, 90, 0.125)), extra=3),
    ViewCase(5, (8, 8), SQUARE, (45, 60), (*_both(45, 60, 0.25), *_both(68, 90, 0.25)), "max", rows=7),
    ViewCase(19, (16, 24), WIDE, (70, 111), (*_both(96, 152, 0.25), *_both(64, 101, 0.25)), rows=16, extra=1),
    ViewCase(3, (8, 8), SQUARE, (200, 40), (*_both(50, 32, 0.25), *_both(400, 80, 0.25)), rows=9),  # far from its size
    ViewCase(150, (8, 8), SQUARE, (40, 50), (*_both(40, 50, 0.25), *_both(50, 63, 0.25)), rows=11),
    ViewCase(255, (4, 4), SQUARE, (33, 35), _both(33, 35, 0.5)),
    ViewCase(4, (32, 32), SQUARE, (40, 50), (*_both(40, 50, 0.25), *_both(60, 75, 0.25)), rows=13),  # full resolution
    ViewCase(4, (11, 9), SQUARE, (40, 50), (*_both(40, 50, 0.25), *_both(60, 75, 0.25))),  # no whole ratio
    ViewCase(4, (16, 4), SQUARE, (41, 50), _both(60, 75, 0.5), rows=5),
    *(
        ViewCase(6, low, Tiling(32, 32, 20, 22, blend), (40, 50), (*_both(40, 50, 0.25), *_both(60, 75, 0.25)), kind)
        for low in ((8, 8), (11, 9))
        for blend, kind in (("gaussian", "mean"), ("hann", "max"))
    ),
    ViewCase(4, (22, 20), Tiling(32, 32, 20, 22, margin=(4, 6, 5, 4)), (40, 50), _both(60, 75, 0.5)),  # not padded
    ViewCase(7, (8, 8), SQUARE, (150, 111), ((70, 52, False, 1.0),), rows=31, extra=2),  # one view: resized
    ViewCase(7, (8, 8), SQUARE, (20, 30), ((32, 32, False, 1.0),)),
    ViewCase(7, (16, 16), Tiling(16, 16, 16, 16), (150, 111), ((16, 16, False, 1.0),), rows=50),  # straight from logits
    ViewCase(3, (8, 8), SQUARE, (1, 1), (*_both(32, 32, 0.5),)),
    ViewCase(3, (8, 8), SQUARE, (1, 90), (*_both(32, 90, 0.25), *_both(48, 135, 0.25))),
    *(  # one class alone
        ViewCase(1, (8, 8), Tiling(32, 32, 24, 24, blend), (45, 60), views, kind, threshold, rows=17, extra=1)
        for views in (((68, 90, False, 1.0),), (*_both(45, 60, 0.25), *_both(68, 90, 0.25)))
        for kind, threshold, blend in (("mean", 0.5, "uniform"), ("mean", 0.3, "gaussian"), ("max", 0.7, "uniform"))
    ),
]  # fmt: skip


def check(machine: Machine) -> Iterator[tuple[str, int]]:
    """Every case in every variant: what it is, and how many values differ."""
    for resized in RESIZES:
        yield f"{resized}", resized.differences(machine)
    for dtype in ("float32", "float16"):
        for case in VIEWS:
            for confidence in (False, True):
                yield f"{dtype} confidence={confidence} {case}", case.differences(machine, dtype, confidence)
