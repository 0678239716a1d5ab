"""The units whose fields are measured: which modules of a network are its stages, and where in a map its centre is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.segformer import SegFormer
from pipeline.models.setr import SETR

OUTPUT = "decoder output"
MAX_STAGES = 6  # of a network that says nothing of its stages
LEADING = (0, 1, 5)  # tokens before those of the grid: none, a class token, and four registers with it


@dataclass(frozen=True)
class Tap:
    """A map inside of a network.  path: of the submodule that makes it, or, `before`, that reads it."""

    name: str
    path: str
    before: bool = False


@dataclass(frozen=True)
class Grid:
    """How a tensor lies over the image.  kind: ``map`` (N, C, h, w), ``last`` (N, h, w, C) or ``tokens`` (N, L, C).

    lead: of tokens, how many come before the grid's.
    """

    kind: str
    height: int
    width: int
    lead: int = 0

    def over(self, window: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Input pixels a unit along y and x, and where in a window (H, W) the middle of the centre unit lies."""
        stride = (window[0] / self.height, window[1] / self.width)
        return stride, ((self.height // 2 + 0.5) * stride[0] - 0.5, (self.width // 2 + 0.5) * stride[1] - 0.5)

    def centre(self, value: Tensor) -> Tensor:
        """The channels (C,) of the unit in row h // 2 and column w // 2."""
        row, column = self.height // 2, self.width // 2
        if self.kind == "map":
            return value[0, :, row, column]
        if self.kind == "last":
            return value[0, row, column]
        return value[0, self.lead + row * self.width + column]


def grid_of(value: Any, window: tuple[int, int]) -> Grid | None:
    """How `value` lies over a window (H, W), if it is a map or tokens of one stride along both axes."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:1] != (1,):
        return None
    if value.ndim == 4:
        for kind, (height, width) in (("map", value.shape[2:]), ("last", value.shape[1:3])):
            if _covers((height, width), window):
                return Grid(kind, height, width)
    if value.ndim == 3:
        for lead in LEADING:
            for stride in range(1, min(window) + 1):
                height, width = window[0] // stride, window[1] // stride
                if height * width + lead == value.shape[1]:
                    return Grid("tokens", height, width, lead)
    return None


def _covers(grid: tuple[int, int], window: tuple[int, int]) -> bool:
    """Whether one stride leads from the window to the grid along both axes, but for what padding adds or takes."""
    (height, width), (rows, columns) = window, grid
    return min(grid) >= 1 and abs(height * columns - width * rows) <= max(window)


def taps_of(module: nn.Module, window: tuple[int, int], channels: int = 3) -> tuple[Tap, ...]:
    """The stages of `module` and the steps of its decoder, in the order in which they are computed, without the output.

    SegFormer and SETR are known by name.  Of any other network a stage is the last map of each resolution that is
    computed before the last one of the lowest, which is where an encoder ends.
    """
    for path, part in module.named_modules():  # it may be wrapped
        prefix = f"{path}." if path else ""
        if isinstance(part, SegFormer | SETR):
            known = _of_segformer(part) if isinstance(part, SegFormer) else _of_setr(part)
            return tuple(replace(tap, path=prefix + tap.path) for tap in known)
    return _found(module, window, channels)


def _of_segformer(module: SegFormer) -> tuple[Tap, ...]:
    """With what the head concatenates, and what its classifier reads: the MLP decoder before and after it fuses."""
    stages = (Tap(f"stage {index + 1}", f"stages.{index}") for index in range(len(module.stages)))
    return (*stages, Tap("before fusing", "head.fuse", True), Tap("after fusing", "head.classify", True))


def _of_setr(module: SETR) -> tuple[Tap, ...]:
    """Blocks at each quarter of the encoder, what MLA reads; and what the classifier reads, of MLA its four branches
    side by side.
    """
    depth = len(module.encoder.blocks)
    quarters = sorted({max(0, depth * part // 4 - 1) for part in range(1, 5)})
    blocks = (Tap(f"block {index + 1}", f"encoder.blocks.{index}") for index in quarters)
    last = "before fusing" if module.config.decoder == "mla" else "decoder"
    return (*blocks, Tap(last, "head.classify", True))


def _found(module: nn.Module, window: tuple[int, int], channels: int) -> tuple[Tap, ...]:
    seen: list[tuple[str, Grid]] = []

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            grid = grid_of(output, window)
            if grid is not None:
                seen.append((path, grid))

        return hook

    handles = [part.register_forward_hook(note(path)) for path, part in module.named_modules() if path]
    try:
        with torch.no_grad():
            module(torch.zeros(1, channels, *window))
    finally:
        for handle in handles:
            handle.remove()
    seen = [(path, grid) for path, grid in seen if grid.height * grid.width > 1]
    least = min((grid.height * grid.width for _, grid in seen), default=0)
    deepest = max((i for i, (_, grid) in enumerate(seen) if grid.height * grid.width == least), default=-1)
    stages: dict[tuple[int, int], str] = {}
    for path, grid in seen[: deepest + 1]:
        stages.pop((grid.height, grid.width), None)
        stages[grid.height, grid.width] = path
    chosen = sorted(stages.items(), key=lambda stage: -stage[0][0] * stage[0][1])[-MAX_STAGES:]
    return tuple(Tap(f"1/{round(window[0] / height)} {path}", path) for (height, _), path in chosen)


@contextmanager
def tapped(module: nn.Module, taps: tuple[Tap, ...]) -> Iterator[dict[str, Tensor]]:
    """Inside the block each call of `module` leaves its maps in the dict, by the taps' names."""
    caught: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., None]:
        return lambda _, inputs: caught.update({name: inputs[0]})

    def after(name: str) -> Callable[..., None]:
        return lambda _, __, output: caught.update({name: output})

    handles = []
    for tap in taps:
        part = module.get_submodule(tap.path)
        if tap.before:
            handles.append(part.register_forward_pre_hook(before(tap.name)))
        else:
            handles.append(part.register_forward_hook(after(tap.name)))
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
