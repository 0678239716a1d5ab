"""Small networks whose fields are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def positive(*layers: nn.Module) -> nn.Module:
    """The layers in a row with weights above zero: no pixel that they read can cancel another."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        parameter.data = 0.5 + torch.rand(parameter.shape, generator=generator)
    return network.requires_grad_(False).eval()


def conv(kernel: int = 3, stride: int = 1, dilation: int = 1, padding: int | None = None, inputs: int = 1) -> nn.Conv2d:
    pad = dilation * (kernel // 2) if padding is None else padding
    return nn.Conv2d(inputs, 1, kernel, stride, pad, dilation, bias=False)


def first(kernel: int = 3, stride: int = 1, dilation: int = 1, padding: int | None = None) -> nn.Conv2d:
    return conv(kernel, stride, dilation, padding, inputs=3)


def seven() -> nn.Module:
    """Seven 3x3 convolutions of stride 1, the first two each followed by 2x2 pooling.

    Field and jump (pixels from unit to unit) grow as
        conv 3, 1; pool 4, 2; conv 4 + 2*2 = 8, 2; pool 8 + 2 = 10, 4; five convs 10 + 5 * 2*4 = 50, 4.
    """
    return positive(first(), nn.AvgPool2d(2), conv(), nn.AvgPool2d(2), *(conv() for _ in range(5)))


def crnn() -> nn.Module:
    """`seven`, for the command line."""
    return seven()


class Resized(nn.Module):
    """Bilinear by `factor`, then a 3x3 convolution."""

    def __init__(self, factor: float, align: bool = False) -> None:
        super().__init__()
        self.factor, self.align = factor, align
        self.last = conv()

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=self.align)
        y: Tensor = self.last(x)
        return y


class Branches(nn.Module):
    """Side by side, added: the field is the larger one."""

    def __init__(self, sides: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sides = nn.ModuleList(sides)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.sides[0](x)
        for side in self.sides[1:]:
            total = total + side(x)
        return total


class Argmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True).float() + torch.zeros(1, 2, 1, 1)


def labels() -> nn.Module:
    """Answers with rounded values, which have no slope."""
    return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), _Round())


class _Round(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.round()


def frozen() -> nn.Module:
    """Computes under no_grad."""
    return _NoGrad()


class _NoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 2, 3, padding=1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y
