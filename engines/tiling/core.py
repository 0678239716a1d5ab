"""The tiling core: ctypes binding of tile.c.  Everything is validated here, before C sees a pointer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from operator import index
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.contract import UInt8
from engines.errors import DeployError, NotFiniteError
from engines.machine.limits import cores
from engines.spec import MAX_BANDS, THRESHOLD, cut_of
from engines.tiling.placement import BLENDS, NO_MARGIN, PADDINGS, Margin, require_inside

Float32 = NDArray[np.float32]
Weights = tuple[Float32, Float32]

MAX_THREADS = 64
MAX_PIXELS = 2**30  # of a side: sums of two still fit into the library's 32-bit integers
MIN_WEIGHT = 1e-12  # products of two are normal float32
NOT_FINITE = 3
MESSAGES = {
    1: "got a size, stride or count out of range",
    2: "a pixel lies in no window; pass every window that touches the rows",
    NOT_FINITE: "the engine's logits are NaN or infinite; build the bundle again, and check the weights",
    4: "the system refused to start a thread; give a smaller --threads",
}


class _Plan(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("height", "width", "window_h", "window_w", "logits_h", "logits_w", "classes", "windows", "row0",
                     "row1", "threads")
    ] + [("cut", ctypes.c_float)]  # fmt: skip


def gather(
    image: UInt8,
    top: int,
    left: int,
    window: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    order: Sequence[int] = (),
    padding: str = "zero",
    out: Float32 | None = None,
    threads: int = 0,
    margin: Margin = NO_MARGIN,
) -> Float32:
    """The window at (top, left) as a network input: (C, h, w) float32, (pixel - mean) / std.

    image: (H, W, C) uint8, any strides, 1 to 64 channels.  mean, std: by *output* channel, on the 0..255 scale.
    order: image channel of each output channel, (2, 1, 0) for a BGR network; () as they are.
    padding: beyond the image, which a window may reach only where the image is smaller: zero, edge or reflect.
    margin: of the window that lies around the place: its first pixel is (top - margin[0], left - margin[1]), and it may
    reach out of the image.
    out: C-contiguous (C, h, w) float32 to write to.  threads: 0 means all cores of this process.
    Raises DeployError when a shape, a dtype or the place of the window is wrong.
    """
    channels = len(mean)
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8:
        raise DeployError(f"gather: got an image {_describe(image)}, expected (H, W, {channels}) uint8")
    if padding not in PADDINGS:
        raise DeployError(f"gather: got padding {padding!r}, expected one of {', '.join(PADDINGS)}")
    order = check_order(order, channels)
    top, left, height, width = _integers("gather: top, left and window", (top, left, *window), 4)
    scale, bias = normalisation(mean, std)
    window, shape = (height, width), (channels, height, width)
    require_inside((top,), (left,), window, margin, (image.shape[0], image.shape[1]))
    if out is None:
        out = np.empty(shape, np.float32)
    elif not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
        raise DeployError(f"gather: got out {_describe(out)}, expected a writeable, C-contiguous {shape} float32")
    status = library().tile_gather(
        image.ctypes.data, image.shape[0], image.shape[1], *image.strides, top - margin[0], left - margin[1], *window,
        _floats(scale), _floats(bias), (ctypes.c_int32 * channels)(*order), channels, PADDINGS.index(padding),
        out.ctypes.data, threads_of(threads),
    )  # fmt: skip
    check("gather", status)
    return out


def stitch(
    logits: Sequence[Float32],
    tops: Sequence[int],
    lefts: Sequence[int],
    window: tuple[int, int],
    image_size: tuple[int, int],
    rows: tuple[int, int] | None = None,
    weights: Weights | None = None,
    labels: UInt8 | None = None,
    confidence: Float32 | bool = False,
    threads: int = 0,
    threshold: float = THRESHOLD,
) -> tuple[UInt8, Float32 | None]:
    """Labels of rows [r0, r1) of an image, from the low-resolution logits of every window that touches them.

    logits: one (K, h, w) float32 C-contiguous array a window, 1 <= K <= 255.  tops, lefts: where each window lies.
    window, image_size: (height, width) in pixels.  rows: default all.
    weights: (window_h,) and (window_w,) float32, 1e-12 or more, or None for the plain mean.
    labels: (r1 - r0, W) uint8 to write to.  confidence: True, or a float32 array of that shape to write to.
    threshold: where K = 1, which stands for two classes: label 1 is where the sigmoid of the mean logit exceeds it.
    Returns labels and confidence (softmax probability of the winner, or None).  The lowest class wins an exact tie.
    Where K = 1 the confidence is the probability of the label: sigmoid of the mean logit, or one minus it.
    Raises DeployError on wrong shapes, uncovered pixels, and NaN or infinite logits (in which case labels that were
    passed in have been written: below K, but without meaning).
    """
    first = _check_logits(logits, tops, lefts)
    tops, lefts = _integers("stitch: tops", tops), _integers("stitch: lefts", lefts)
    window_h, window_w, height, width = _integers("stitch: window and image_size", (*window, *image_size), 4)
    row0, row1 = _integers("stitch: rows", rows or (0, height), 2)
    if min(window_h, window_w, height, width) < 1 or min(tops) < 0 or min(lefts) < 0:
        raise DeployError(
            f"stitch: got window {window}, image {image_size}, tops from {min(tops)} and lefts from {min(lefts)}, "
            "expected sizes of 1 or more and places of 0 or more"
        )
    if not 0 <= row0 < row1 <= height:
        raise DeployError(f"stitch: got rows {row0}..{row1} of an image {image_size}, expected a part of it")
    if weights is not None:
        check_weights(weights, (window_h, window_w))
    shape = (row1 - row0, width)
    labels = _output(labels, shape, np.uint8, "labels")
    certainty: Float32 | None = None
    if isinstance(confidence, np.ndarray):
        certainty = _output(confidence, shape, np.float32, "confidence")
    elif confidence:
        certainty = np.empty(shape, np.float32)
    classes, low_h, low_w = first.shape
    plan = _Plan(
        height=height, width=width, window_h=window_h, window_w=window_w, logits_h=low_h, logits_w=low_w,
        classes=classes, windows=len(logits), row0=row0, row1=row1, threads=threads_of(threads),
        cut=cut_of(threshold),
    )  # fmt: skip
    workspace = aligned(library().tile_stitch_workspace(ctypes.byref(plan), certainty is not None))
    status = library().tile_stitch(
        ctypes.byref(plan), (ctypes.c_void_p * len(logits))(*(array.ctypes.data for array in logits)),
        (ctypes.c_int32 * len(logits))(*tops), (ctypes.c_int32 * len(logits))(*lefts),
        weights[0].ctypes.data if weights else None, weights[1].ctypes.data if weights else None,
        labels.ctypes.data, labels.strides[0],
        None if certainty is None else certainty.ctypes.data, 0 if certainty is None else certainty.strides[0] // 4,
        workspace.ctypes.data,
    )  # fmt: skip
    check("stitch", status)
    return labels, certainty


def labels_of(logits: Float32, threshold: float | None) -> UInt8:
    """The labels (M, h, w) of logits (M, K, h, w) by themselves, as `stitch` would give them without interpolation.

    threshold: `ModelSpec.threshold`: of one channel, or None where the largest of K wins.
    """
    labels: NDArray[Any] = logits.argmax(1) if threshold is None else logits[:, 0] > cut_of(threshold)
    return labels.astype(np.uint8)


def aligned(size: int) -> UInt8:
    """Workspace of `size` bytes, starting at a cache line."""
    raw = np.empty(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :]


def blend_weights(kind: str, height: int, width: int) -> Weights | None:
    """Weights of a window's rows and columns, float32 and positive, or None for ``uniform``.

    gaussian: sigma is an eighth of the window, as in MONAI's sliding_window_inference, and never below 1e-3.
    hann: sampled half a pixel inside its zeros.
    """
    if kind not in BLENDS:
        raise DeployError(f"blend: got {kind!r}, expected one of {', '.join(BLENDS)}")
    if kind == "uniform":
        return None
    return _window(kind, height), _window(kind, width)


def _window(kind: str, size: int) -> Float32:
    position = (np.arange(size) + 0.5) / size
    if kind == "gaussian":
        values = np.maximum(np.exp(-0.5 * ((position - 0.5) / 0.125) ** 2), 1e-3)
    else:
        values = np.sin(np.pi * position) ** 2
    return values.astype(np.float32)


def build_info() -> str:
    """The instruction sets that the loaded library was compiled for."""
    text: bytes = library().tile_build_info()
    return text.decode()


@cache
def library() -> ctypes.CDLL:
    """The compiled tile.c beside this file.  Raises DeployError saying how to build it."""
    found = [path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).with_name(f"_tile{suffix}")).exists()]
    if not found:
        raise DeployError(
            "tiling core: the C library engines/tiling/_tile is not built; install a C compiler (apt-get install gcc) "
            "and run: pip install -e ."
        )
    try:
        lib = ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise DeployError(f"tiling core: cannot load {found[0].name}: {error}; run: pip install -e .") from error
    if not hasattr(lib, "labels_count"):
        raise DeployError(f"tiling core: {found[0].name} is of an older version; run: pip install -e .")
    pointer, int32, stride = ctypes.c_void_p, ctypes.c_int32, ctypes.c_ssize_t
    lib.tile_gather.argtypes = [
        pointer, int32, int32, stride, stride, stride, int32, int32, int32, int32, pointer, pointer, pointer, int32,
        int32, pointer, int32,
    ]  # fmt: skip
    lib.tile_stitch_workspace.argtypes = [pointer, int32]
    lib.tile_stitch_workspace.restype = ctypes.c_size_t
    lib.tile_stitch.argtypes = [pointer] * 7 + [stride, pointer, stride, pointer]
    lib.tile_build_info.restype = ctypes.c_char_p
    lib.labels_count.argtypes = [pointer, int32, int32, stride, pointer]
    lib.tail_run.argtypes = [pointer, int32, pointer]
    return lib


def _check_logits(logits: Sequence[Float32], tops: Sequence[int], lefts: Sequence[int]) -> Float32:
    if not len(logits) or not len(logits) == len(tops) == len(lefts):
        raise DeployError(f"stitch: got {len(logits)} logits at {len(tops)} x {len(lefts)} places, expected one each")
    first = logits[0]
    for array in logits:
        if (
            not isinstance(array, np.ndarray)
            or array.dtype != np.float32
            or array.ndim != 3
            or array.shape != first.shape
            or not (array.flags.c_contiguous and array.flags.aligned)
        ):
            raise DeployError(
                f"stitch: got logits {_describe(array)}, expected C-contiguous (K, h, w) float32, "
                "the same shape for all windows"
            )
    if not 1 <= first.shape[0] <= 255 or 0 in first.shape:
        raise DeployError(f"stitch: got logits {first.shape}, expected 1 to 255 classes and at least one value")
    return first


def check_weights(weights: Weights, window: tuple[int, int]) -> None:
    """Raise DeployError unless they are weights of a window's rows and columns."""
    for values, size in zip(weights, window, strict=True):
        shaped = isinstance(values, np.ndarray) and values.shape == (size,) and values.dtype == np.float32
        if not shaped or not values.flags.c_contiguous or not MIN_WEIGHT <= values.min() <= values.max() < np.inf:
            raise DeployError(
                f"stitch: got weights {_describe(values)}, expected ({size},) float32 > 0 (at least {MIN_WEIGHT:g})"
            )


def _output(array: Any, shape: tuple[int, int], dtype: type, name: str) -> Any:
    if array is None:
        return np.empty(shape, dtype)
    if (
        not isinstance(array, np.ndarray)
        or array.shape != shape
        or array.dtype != dtype
        or not (array.flags.writeable and array.flags.aligned)
        or array.strides[1] != array.itemsize
    ):
        raise DeployError(
            f"stitch: got {name} {_describe(array)}, expected a writeable {shape} {np.dtype(dtype)} array "
            "whose rows are contiguous"
        )
    return array


def check_order(order: Sequence[int], channels: int) -> tuple[int, ...]:
    """The channel that each plane takes.  Raises DeployError."""
    order = tuple(order) or tuple(range(channels))
    if sorted(order) != list(range(channels)):
        raise DeployError(f"gather: got channel order {order}, expected a permutation of {tuple(range(channels))}")
    return order


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Float32, Float32]:
    """scale = 1 / std and bias = -mean / std, rounded once."""
    average, deviation = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    shaped = average.ndim == 1 and 1 <= average.size <= MAX_BANDS and deviation.shape == average.shape
    if not shaped or not np.isfinite((average, deviation)).all() or deviation.min() <= 0:
        raise DeployError(f"gather: got mean {mean} and std {std}, expected a number for each channel, std above 0")
    return (1 / deviation).astype(np.float32), (-average / deviation).astype(np.float32)


def _integers(name: str, values: Sequence[int], count: int | None = None) -> list[int]:
    """The values as Python integers: numpy's are not accepted by ctypes, and ctypes wraps what does not fit."""
    try:
        numbers = [index(value) for value in values]
    except TypeError as error:
        raise DeployError(f"{name}: got {values}, expected integers") from error
    if len(numbers) != (count or len(numbers)) or any(abs(number) > MAX_PIXELS for number in numbers):
        raise DeployError(f"{name}: got {numbers}, expected {count or 'any'} of them, none beyond {MAX_PIXELS}")
    return numbers


def _describe(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return f"of type {type(array).__name__}"
    notes = "" if array.flags.c_contiguous else ", not C-contiguous"
    return f"{array.shape} {array.dtype}{notes}{'' if array.flags.aligned else ', not aligned'}"


def threads_of(threads: int) -> int:
    """How many the library starts.  threads: 0 means all cores of this process.  Raises DeployError."""
    if threads < 0:
        raise DeployError(f"threads: got {threads}, expected 0 (all cores) or more")
    return min(threads or cores(), MAX_THREADS)


def _floats(values: Float32) -> Any:
    return (ctypes.c_float * len(values))(*values.tolist())


def check(what: Literal["gather", "stitch", "merge", "resize"], status: int) -> None:
    """Raise DeployError where the library returned anything but success."""
    if status:
        kind = NotFiniteError if status == NOT_FINITE else DeployError
        raise kind(f"{what}: {MESSAGES.get(status, f'unknown status {status}')}")
