"""Pillow's own pixels as a numpy array, without a copy: what a very large image needs.

An RGB image lies in Pillow as four bytes a pixel.  `np.asarray` would hold a second copy of three while it is made, and
for a moment a third: 2.7 GB for 16384 x 16384 pixels instead of 1.1.  Pillow gives its memory away through the Arrow C
data interface (https://arrow.apache.org/docs/format/CDataInterface.html), as a list of 4 bytes for each pixel, if the
image lies in one block.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from PIL import Image

from engines.contract import UInt8

SHARED_FROM = 2**26  # pixels; smaller images are copied, into rows that the C core reads fastest


class _ArrowArray(ctypes.Structure):
    pass


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]


class _Owner:
    """Holds the capsule, and with it the memory, for as long as an array that numpy made of this lives."""

    def __init__(self, capsule: Any, address: int, shape: tuple[int, ...]) -> None:
        self._capsule = capsule
        self.__array_interface__ = {"shape": shape, "typestr": "|u1", "data": (address, True), "version": 3}


def shared_pixels(image: Image.Image) -> UInt8:
    """(H, W, 3) uint8, read-only, rows of 4 W bytes: the memory of an RGB `image` that was decoded in `one_block`."""
    _, capsule = image.__arrow_c_array__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer(capsule, b"arrow_array")
    assert address is not None, "PyCapsule_GetPointer raises rather than return NULL"
    pixels = _ArrowArray.from_address(address)
    bytes_ = pixels.children[0].contents
    start = bytes_.buffers[1] + bytes_.offset
    return np.asarray(_Owner(capsule, start, (image.height, image.width, 4)))[:, :, :3]
