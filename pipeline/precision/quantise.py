"""Symmetric INT8 arithmetic: q = clip(round_half_even(x / scale), -128, 127), x' = q * scale; the zero point is 0.

As in ONNX QuantizeLinear and in TensorRT.  On request, for OpenVINO, the zero point of a tensor that cannot be negative
is -128, so that all 256 levels are used; zero itself stays exact.  Scales are rounded *up* to the type in which they
are stored, so that no measured value is clipped by that rounding; weights are quantised with the stored scale, so
nothing else is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.graph.types import FLOATS

F32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
NEAREST: Mapping[str, Int8] = MappingProxyType({})  # no weight is rounded otherwise


def scale_from_amax(amax: F32 | float, stored: str = "fp32") -> F32:
    """amax / 127, exactly representable in `stored` (fp32, fp16 or bf16) and never zero."""
    kind = FLOATS[stored]
    exact = np.maximum(np.asarray(amax, np.float64) / 127, 2.0**-24).astype(np.float32)
    if stored == "fp32":
        return exact
    rounded = exact.astype(kind.dtype)
    below = rounded.astype(np.float32) < exact
    # The next larger half: positive floats are ordered as their bit patterns are.
    bits = rounded.view(np.uint16) + below.astype(np.uint16)
    result: F32 = bits.view(kind.dtype).astype(np.float32)
    return result


def grid(amax: float, stored: str, unsigned: bool) -> tuple[F32, int]:
    """(scale, zero point) of an activation within `amax`.  unsigned: it cannot be negative."""
    return (scale_from_amax(amax * 127 / 255, stored), -128) if unsigned else (scale_from_amax(amax, stored), 0)


def weight_scales(weight: F32, axis: int, stored: str = "fp32") -> F32:
    """One scale per index of `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return scale_from_amax(np.abs(weight).max(axis=others), stored)


def quantise(value: F32, scale: F32, axis: int | None = None) -> Int8:
    """value / scale, rounded to even and clipped to [-128, 127]."""
    result: Int8 = np.clip(np.rint(value / _along(scale, axis, value.ndim)), -128, 127).astype(np.int8)
    return result


def dequantise(value: Int8, scale: F32, axis: int | None = None) -> F32:
    return value.astype(np.float32) * _along(scale, axis, value.ndim)


def _along(scale: F32, axis: int | None, ndim: int) -> F32:
    if axis is None:
        return scale
    shape = [1] * ndim
    shape[axis % ndim] = -1
    return scale.reshape(shape)
