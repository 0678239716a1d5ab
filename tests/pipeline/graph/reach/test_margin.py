"""Where an unpadded network's output lies: networks that only copy pixels show it, by the pixels that come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.graph.reach.margin import laid
from pipeline.receptive.graph import tapped_graph

SIZE = (60, 72)


def _copy(kernel: int, stride: int = 1, **options: object) -> nn.Conv2d:
    """A convolution that passes on the pixel in the middle of its kernel."""
    conv = nn.Conv2d(3, 3, kernel, stride, bias=False, groups=3, **options)  # type: ignore[arg-type]
    conv.weight.data.zero_()
    conv.weight.data[:, :, kernel // 2, kernel // 2] = 1
    return conv


class _Crop(nn.Module):
    def __init__(self, top: int, left: int, bottom: int, right: int) -> None:
        super().__init__()
        self.sides = top, left, bottom, right

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.sides
        return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


class _Joined(nn.Module):
    """A wide branch and the crop of a narrow one, as a U-Net's skip."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.crop = _copy(9), _copy(3), _Crop(3, 3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.wide(x), self.crop(self.narrow(x))], 1)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(_copy(3)),
        nn.Sequential(_copy(3), _copy(5), _copy(7, dilation=2)),
        nn.Sequential(_copy(29), _Crop(1, 4, 6, 2)),
        nn.Sequential(nn.ZeroPad2d((4, 0, 0, 2)), _copy(11)),
        nn.Sequential(_copy(5, padding=1)),
        _Joined(),
    ],
    ids=["one", "three", "cropped", "padded askew", "half padded", "skip"],
)
def test_the_first_label_is_of_the_pixel_that_comes_out_first(module: nn.Module) -> None:
    image = torch.arange(3 * SIZE[0] * SIZE[1]).reshape(1, 3, *SIZE).float()
    out = module(image)[0, 0].detach().numpy()
    (row, column), *_ = np.argwhere(image[0, 0].numpy() == out[9, 9])  # away from what a padding made
    top, left = int(row) - 9, int(column) - 9
    told = laid(tapped_graph(module, (), SIZE))
    assert told == (1, (top, left, SIZE[0] - out.shape[0] - top, SIZE[1] - out.shape[1] - left))


def test_strides_are_found_where_the_sizes_do_not_tell() -> None:
    module = nn.Sequential(_copy(3, 2), _copy(5, 2), _copy(3))  # 60 x 72 become 11 x 14: a stride of 4, not of 5
    (stride, (top, left, bottom, right)) = laid(tapped_graph(module, (), SIZE)) or (0, (0, 0, 0, 0))
    rows, columns = module(torch.zeros(1, 3, *SIZE)).shape[2:]
    assert stride == 4
    assert (SIZE[0] - top - bottom, SIZE[1] - left - right) == (4 * rows, 4 * columns)
    first = 1 + 2 * 2 + 4  # the pixel in the middle of what the first unit reads
    assert abs(top + 1.5 - first) <= 0.5
    assert top == left


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(_copy(3, padding=1)),
        nn.Sequential(_copy(5, 4, padding=2)),
        nn.Sequential(_copy(7, 7)),  # 60 and 72 are no multiples of 7: what is left over is no margin
        nn.Sequential(_copy(5), nn.Upsample(SIZE, mode="bilinear")),
        nn.Sequential(nn.Unfold(5), nn.Flatten(0, 1), nn.Unflatten(0, (1, 75)), nn.Unflatten(2, (56, 68))),
    ],
    ids=["padded", "strided", "rest", "resized", "not told"],
)
def test_what_covers_its_window_or_cannot_be_told_has_none(module: nn.Module) -> None:
    assert laid(tapped_graph(module, (), SIZE)) is None
