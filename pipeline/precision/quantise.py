"""Symmetric 8-bit arithmetic, as in ONNX QuantizeLinear and in TensorRT; the zero point is 0.

INT8: q = clip(round_half_even(x / scale), -128, 127), x' = q * scale.  FP8: E4M3, whose largest number is 448 and
beyond which it saturates.  On request, for OpenVINO, the zero point of a tensor that cannot be negative
is -128, so that all 256 levels are used; zero itself stays exact.  Scales are rounded *up* to the type in which they
are stored, so that no measured value is clipped by that rounding; weights are quantised with the stored scale, so
nothing else is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from pipeline.graph.types import FLOATS

F32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
NEAREST: Mapping[str, Int8] = MappingProxyType({})  # no weight is rounded otherwise


LARGEST = {"int8": 127.0, "fp8": 448.0}
FP8 = ml_dtypes.float8_e4m3fn


def scale_from_amax(amax: F32 | float, stored: str = "fp32", eight_bit: str = "int8") -> F32:
    """amax over the largest number of `eight_bit`, exactly representable in `stored` (fp32, fp16, bf16), never zero."""
    kind = FLOATS[stored]
    exact = np.maximum(np.asarray(amax, np.float64) / LARGEST[eight_bit], 2.0**-24).astype(np.float32)
    if stored == "fp32":
        return exact
    rounded = exact.astype(kind.dtype)
    below = rounded.astype(np.float32) < exact
    # The next larger half: positive floats are ordered as their bit patterns are.
    bits = rounded.view(np.uint16) + below.astype(np.uint16)
    result: F32 = bits.view(kind.dtype).astype(np.float32)
    return result


def grid(amax: float, stored: str, unsigned: bool, eight_bit: str = "int8") -> tuple[F32, int]:
    """(scale, zero point) of an activation within `amax`.  unsigned: it cannot be negative; of INT8 alone."""
    if unsigned:
        return scale_from_amax(amax * 127 / 255, stored), -128
    return scale_from_amax(amax, stored, eight_bit), 0


def weight_scales(weight: F32, axis: int | None, stored: str = "fp32", eight_bit: str = "int8") -> F32:
    """One scale per index of `axis`; one for all where that is None."""
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return scale_from_amax(np.abs(weight).max(axis=others), stored, eight_bit)


def quantise(value: F32, scale: F32, axis: int | None = None) -> Int8:
    """value / scale, rounded to even and clipped to [-128, 127]."""
    result: Int8 = np.clip(np.rint(value / _along(scale, axis, value.ndim)), -128, 127).astype(np.int8)
    return result


def to_fp8(value: F32, scale: F32, axis: int | None = None) -> NDArray[Any]:
    """value / scale as E4M3, rounded to even; beyond 448 it saturates, where a plain cast gives NaN."""
    most = LARGEST["fp8"]
    result: NDArray[Any] = np.clip(value / _along(scale, axis, value.ndim), -most, most).astype(FP8)
    return result


def dequantise(value: NDArray[Any], scale: F32, axis: int | None = None) -> F32:
    result: F32 = value.astype(np.float32) * _along(scale, axis, value.ndim)
    return result


def decibels(weight: F32, scale: F32, axis: int | None = None, eight_bit: str = "int8") -> float:
    """Signal to quantisation noise of a weight: 10 log10(sum w^2 / sum (w' - w)^2)."""
    rounded = quantise(weight, scale, axis) if eight_bit == "int8" else to_fp8(weight, scale, axis)
    noise = float(np.square(dequantise(rounded, scale, axis) - weight, dtype=np.float64).sum())
    return 10 * math.log10(max(float(np.square(weight, dtype=np.float64).sum()), 1e-30) / max(noise, 1e-30))


def _along(scale: F32, axis: int | None, ndim: int) -> F32:
    if axis is None:
        return scale
    shape = [1] * ndim
    shape[axis % ndim] = -1
    return scale.reshape(shape)
