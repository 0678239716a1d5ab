"""The effective receptive field: how strongly each pixel of the image moves the unit in the middle of a map.

Luo, Li, Urtasun and Zemel, "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NIPS
2016, arXiv 1701.04128: the gradient of the centre unit with respect to the input, absolute, averaged over images.  They
have one channel.  A unit of many is mixed here with random signs, another draw for each image, whose mean square is the
sum of the channels' squares; a plain sum would be constant after a LayerNorm, and its gradient zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from engines.contract import Float32
from engines.errors import DeployError
from pipeline.receptive.field import Field, Float64
from pipeline.receptive.units import OUTPUT, Grid, Tap, grid_of, tapped


@dataclass
class _Sum:
    """|gradient| added up over windows: all that is held of them."""

    grid: Grid
    total: Float64
    images: int = 0


@dataclass
class Gradients:
    """The sums over the windows seen so far; `add` one window after the other, then take the `fields`.

    module: (1, 3, H, W) float32 -> (1, K, h, w), in eval mode, without gradients of its own.  seed: of the signs.
    """

    module: nn.Module
    window: tuple[int, int]
    taps: tuple[Tap, ...] = ()
    seed: int = 0
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _images: int = 0

    def add(self, window: Float32) -> None:
        """window: (1, 3, H, W) float32, normalised.  Raises DeployError where nothing can be differentiated."""
        image = torch.from_numpy(window).clone().requires_grad_(True)
        with torch.enable_grad(), tapped(self.module, self.taps) as caught:
            try:
                caught[OUTPUT] = self.module(image)
            except RuntimeError as error:
                raise _no_gradient(OUTPUT, _first_line(error)) from error
        signs = np.random.default_rng([self.seed, self._images])
        for name in (*(tap.name for tap in self.taps if tap.name in caught), OUTPUT):
            self._add(name, caught[name], image, signs)
        self._images += 1

    def fields(self) -> list[Field]:
        """From the shallowest tap to the output.  Raises DeployError where no pixel moved a unit on any image."""
        found = []
        for name, held in self._sums.items():
            whole = held.total.sum()
            if whole <= 0:
                raise _no_gradient(name, f"it is zero at every pixel of {held.images} image(s)")
            stride, centre = held.grid.over(self.window)
            found.append(Field(name, held.total / whole, stride=stride, centre=centre, images=held.images))
        return found

    def _add(self, name: str, value: Tensor, image: Tensor, signs: np.random.Generator) -> None:
        grid = grid_of(value, self.window)
        if grid is None:
            raise DeployError(
                f"receptive field: {name} is {tuple(value.shape)}, expected a map (1, C, h, w) over a "
                f"{self.window[0]}x{self.window[1]} window; give another --tile"
            )
        unit = grid.centre(value)
        mix = torch.from_numpy(signs.choice((-1.0, 1.0), unit.shape[0]).astype(np.float32))
        if not unit.requires_grad:
            raise _no_gradient(name, "something in it is not differentiable, or runs under torch.no_grad")
        try:
            (gradient,) = torch.autograd.grad((unit * mix).sum(), image, retain_graph=name != OUTPUT, allow_unused=True)
        except RuntimeError as error:
            raise _no_gradient(name, _first_line(error)) from error
        if gradient is None:
            raise _no_gradient(name, "nothing in it depends on the image")
        energy = gradient[0].abs().mean(0).double().numpy()
        if not np.isfinite(energy).all():
            raise _no_gradient(name, "it is NaN or infinite")
        held = self._sums.setdefault(name, _Sum(grid, np.zeros(self.window)))
        held.total += energy
        held.images += 1


def measure(module: nn.Module, windows: Iterable[Float32], size: tuple[int, int], taps: tuple[Tap, ...] = (),
            seed: int = 0) -> list[Field]:  # fmt: skip
    """The fields of `taps` and of the output, averaged over `windows` (1, 3, H, W).  Raises DeployError."""
    measured = Gradients(module, size, taps, seed)
    for window in windows:
        measured.add(window)
    return measured.fields()


def _no_gradient(name: str, why: str) -> DeployError:
    return DeployError(
        f"receptive field: got no gradient of the {name} with respect to the image ({why}), expected a differentiable "
        "network; give the checkpoint or the factory that it was trained as"
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
