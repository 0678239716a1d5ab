"""Images and label maps brought to another size, with the filter that a model was trained with."""

from __future__ import annotations

import ctypes

import numpy as np
from PIL import Image

from engines.contract import UInt8
from engines.errors import DeployError
from engines.images.read import MAX_PIXELS
from engines.spec import FILTERS, OPENCV, ModelSpec
from engines.tiling import core
from engines.tiling.placement import Tiling
from engines.tiling.sizes import MOST, Resize


def pixels(size: tuple[float, float]) -> tuple[int, int]:
    """A size in whole pixels: the nearest, at least one.  Raises DeployError for more than images may have."""
    height, width = (max(1, int(side + 0.5)) for side in size)
    if height * width > MAX_PIXELS or max(height, width) > MOST:
        raise DeployError(
            f"resize: got an image that becomes {width}x{height}, expected {MAX_PIXELS} pixels at most and sides of "
            f"{MOST} at most; give another size"
        )
    return height, width


def size_of(image: UInt8, tiling: Tiling) -> tuple[int, int]:
    """(height, width) of an image when its windows are cut.  Raises DeployError."""
    resize = Resize.parse(tiling.resize)
    return (image.shape[0], image.shape[1]) if resize is None else pixels(resize.of(image.shape[0], image.shape[1]))


def sized(image: UInt8, spec: ModelSpec, tiling: Tiling) -> UInt8:
    """The image as its windows are cut: the same array where `tiling` has it left as it is.  Raises DeployError."""
    return resample(image, size_of(image, tiling), spec.resample)


def resample(image: UInt8, size: tuple[int, int], name: str, threads: int = 0) -> UInt8:
    """(H, W, C) uint8 -> (*size, C) by the filter `name`, one of `engines.spec.FILTERS`; the same array if it fits.

    ``opencv-bilinear`` takes the two nearest pixels along each axis (half-pixel centres); Pillow's average where they
    shrink.  threads: of the former; 0 means all cores of this process.  Raises DeployError.
    """
    if image.shape[:2] == size:
        return image
    channels = image.shape[2]
    if channels != 3:  # three at a time
        full = np.concatenate([image, np.zeros((*image.shape[:2], -channels % 3), np.uint8)], 2)
        parts = [resample(full[:, :, first : first + 3], size, name, threads) for first in range(0, channels, 3)]
        return np.concatenate(parts, 2)[:, :, :channels]
    if name != OPENCV:
        if name not in FILTERS:
            raise DeployError(f"resize: got the filter {name!r}, expected one of {', '.join(FILTERS)}")
        method = Image.Resampling[name.removeprefix("pillow-").upper()]
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size[1], size[0]), method))
    out, count = np.empty((*size, 3), np.uint8), core.threads_of(threads)
    workspace = np.empty(3 * (count * image.shape[1] + size[1]), np.float32)
    pointer, stride, integer = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int32
    status = core.library().resize_bilinear(
        pointer(image.ctypes.data), integer(image.shape[0]), integer(image.shape[1]),
        *(stride(step) for step in image.strides), pointer(out.ctypes.data), integer(size[0]), integer(size[1]),
        pointer(workspace.ctypes.data), integer(count),
    )  # fmt: skip
    core.check("resize", status)
    return out


def resize_image(image: UInt8, size: tuple[int, int]) -> UInt8:
    """(H, W, 3) uint8 -> (*size, 3): Pillow's BILINEAR, half-pixel centres, averaging where it shrinks."""
    return resample(image, size, "pillow-bilinear")


def resize_labels(labels: UInt8, size: tuple[int, int]) -> UInt8:
    """(H, W) uint8 -> size, each pixel the label under its centre (Pillow's NEAREST); the same array if it fits."""
    if labels.shape == size:
        return labels
    rows, columns = (((2 * np.arange(to) + 1) * of) // (2 * to) for of, to in zip(labels.shape, size, strict=True))
    resized: UInt8 = labels[rows[:, None], columns]
    return resized
