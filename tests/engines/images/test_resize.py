"""Resizing of images, against PyTorch and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from engines.errors import DeployError
from engines.images.resize import pixels, resample, resize_labels
from engines.spec import FILTERS, OPENCV
from engines.tiling.sizes import Resize

SIZES = [((40, 60), (70, 105)), ((40, 60), (13, 17)), ((1, 1), (5, 3)), ((300, 5), (3, 500)), ((64, 64), (64, 63))]


@pytest.mark.parametrize(("of", "to"), SIZES)
@pytest.mark.parametrize("step", [3, 4, -3])
def test_two_nearest_pixels_as_opencv_and_pytorch_without_antialiasing(of, to, step: int) -> None:  # type: ignore[no-untyped-def]
    stored = np.random.default_rng(0).integers(0, 256, (*of, abs(step)), np.uint8)
    image = stored[:, ::-1] if step < 0 else stored[:, :, :3]
    resized = resample(image, to, OPENCV)
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double()
    expected = F.interpolate(planes, to, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    assert resized.shape == (*to, 3)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized, expected, atol=0.501)


@pytest.mark.parametrize("name", FILTERS[1:])
def test_pillows_filters_are_pillows(name: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    method = getattr(Image.Resampling, name.removeprefix("pillow-").upper())
    expected = np.asarray(Image.fromarray(image[:, ::-1].copy()).resize((33, 21), method))
    assert np.array_equal(resample(image[:, ::-1], (21, 33), name), expected)


def test_what_fits_is_left_alone() -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    assert resample(image, (4, 5), "pillow-lanczos") is image
    with pytest.raises(DeployError, match="expected one of opencv-bilinear"):
        resample(image, (5, 5), "bilinear")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512x256", (256, 512)),
        ("short=512", (512, 683)),
        ("long=512", (384, 512)),
        ("short=512:floor", (512, 682)),
        ("short=1", (1, 1)),
        ("short=512,long=700", (512, 683)),
        ("short=512,long=600", (450, 600)),
        ("short=512,long=600,by=32", (480, 608)),
    ],
)
def test_sizes_as_mmcv_computes_them(text: str, size: tuple[int, int]) -> None:
    resize = Resize.parse(text)
    assert resize is not None
    assert str(resize) == text
    assert pixels(resize.of(750, 1000)) == size
    assert Resize.parse("none") is None


def test_labels_take_the_nearest() -> None:
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert resize_labels(labels, (2, 3)) is labels
    assert np.array_equal(resize_labels(labels, (1, 1)), [[4]])
