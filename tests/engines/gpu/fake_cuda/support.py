"""The fake driver in this process, and an engine to run on it.

Only for processes that were started with the fake driver on LD_LIBRARY_PATH: see tests/engines/gpu/test_cuda.py.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from engines.contract import Tensor
from engines.gpu.context import CudaGpu, open_gpu
from engines.gpu.device import CudaDevice
from engines.gpu.driver import current_context
from engines.segmenter import Mask, Segmenter
from engines.spec import ModelSpec
from engines.tiling.host import HostDevice
from engines.tiling.placement import Tiling

CUBIN = b"\x7fELF that the fake driver takes"
KINDS = ("device", "host", "modules", "streams", "events", "graphs", "contexts")
SPEC = ModelSpec("fake", "one", tuple("abcde"), tuple((i, i, i) for i in range(5)), channel_order="BGR")
_DEFAULTS = {"memory": 1 << 30, "integrated": 0, "lazy": 0, "fail_after": -1, "refuse_capture": 0, "devices": 1,
             "coherent": 0, "old_kernels": 0, "clock": 0}  # fmt: skip
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.fake_set.argtypes = [ctypes.c_char_p, ctypes.c_longlong]
    library.fake_used.restype = ctypes.c_longlong
    library.cuLaunchHostFunc.argtypes = [ctypes.c_void_p, HOST_FUNCTION, ctypes.c_void_p]
    return library


def configure(**settings: int) -> None:
    """Set the fake driver's settings, the others to what they are at first."""
    for name, value in {**_DEFAULTS, **settings}.items():
        assert driver().fake_set(name.encode(), value) == 0


def alive() -> tuple[dict[str, int], int]:
    """What is alive by kind, without the zeros, and how often the driver found something wrong."""
    counts = (ctypes.c_long * len(KINDS))()
    complaints = driver().fake_state(counts)
    return {kind: count for kind, count in zip(KINDS, counts, strict=True) if count}, complaints


@contextmanager
def nothing_stays() -> Iterator[None]:
    """After the block, which starts with the settings of before, all is freed and the driver found nothing wrong."""
    configure()
    before = alive()[1]
    yield
    assert alive() == ({}, before)
    assert driver().fake_used() == 0
    assert current_context() == 0


class Engine:
    """Logits that depend on the pixels around each, the same on the host and on the device.

    low: (h, w) of the logits.  poison: after so many runs on the device the logits are NaN; -1 never.
    threshold: None for five channels, or of one.  bands: of the images.
    """

    def __init__(
        self, tiling: Tiling, batch: int = 1, low: tuple[int, int] | None = None, dtype: str = "fp32",
        capturable: bool = True, threshold: float | None = None, bands: int = 3,
    ) -> None:  # fmt: skip
        self.spec = (
            SPEC if threshold is None else replace(SPEC, classes=("it",), palette=((1, 2, 3),), threshold=threshold)
        )
        if bands != 3:
            values = tuple(float(50 + band) for band in range(bands))
            self.spec = replace(self.spec, mean=values, std=values, channel_order="RGB")
        channels = self.spec.channels
        window = (tiling.window_h, tiling.window_w)
        self.low = low or (-(-window[0] // 4), -(-window[1] // 4))
        self.input = Tensor("image", (batch, bands, *window), dtype)
        self.output = Tensor("logits", (batch, channels, *self.low), dtype)
        self.capturable, self.poison, self.enqueued, self.runtime_cache = capturable, -1, 0, b""
        self.contexts: list[Engine] = []  # made beside this one, by `another`
        self.refuses: str | None = None  # why there is none
        self._type = np.dtype(np.float16 if dtype == "fp16" else np.float32)
        self._calls: list[Any] = []  # what the driver may call until the end
        rng = np.random.default_rng(11)
        self._mix = rng.normal(size=(5, bands)).astype(np.float32)[:channels]
        self._bias = rng.normal(size=5).astype(np.float32)[:channels]
        self._rows = np.linspace(0, window[0] - 1, self.low[0]).astype(int)
        self._columns = np.linspace(0, window[1] - 1, self.low[1]).astype(int)

    def logits(self, windows: np.ndarray) -> np.ndarray:
        points = windows.astype(np.float32)[:, :, self._rows][:, :, :, self._columns]
        out = [sum(weight * points[:, i] for i, weight in enumerate(row)) for row in self._mix]
        return (np.stack(out, 1) + self._bias[None, :, None, None]).astype(self._type)

    def run(self, windows: np.ndarray) -> np.ndarray:
        return self.logits(windows.astype(self._type)).astype(np.float32)

    def enqueue(self, source: int, target: int, stream: int) -> None:
        assert source % 256 == target % 256 == 0
        self.enqueued += 1

        def work(_: int | None) -> None:
            given, taken = _view(source, self.input, self._type), _view(target, self.output, self._type)
            taken[:] = np.nan if self.poison == 0 else self.logits(given)
            self.poison -= self.poison > 0

        self._calls.append(HOST_FUNCTION(work))
        status = driver().cuLaunchHostFunc(stream, self._calls[-1], id(self))  # the context that is at work
        if status:
            from engines.errors import DeployError

            raise DeployError(f"engine: the SDK says {status}")

    def another(self) -> Engine:
        from engines.errors import DeployError

        if self.refuses is not None:
            raise DeployError(f"engine: {self.refuses}")
        made = copy.copy(self)
        made.enqueued, made.contexts, made.closed = 0, [], False
        self.contexts.append(made)
        return made

    def close(self) -> None:
        self.closed = True


class Bright(Engine):
    """No number of a window that is bright all over."""

    def logits(self, windows: np.ndarray) -> np.ndarray:
        found = super().logits(windows)
        found[windows.astype(np.float32).mean((1, 2, 3)) > 2] = np.nan
        return found

    def run(self, windows: np.ndarray) -> np.ndarray:
        return self.logits(windows)


def _view(address: int, tensor: Tensor, dtype: np.dtype[Any]) -> np.ndarray:
    size = int(np.prod(tensor.shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(tensor.shape)


@contextmanager
def opened(engine: Engine, tiling: Tiling, **options: Any) -> Iterator[tuple[Segmenter, CudaDevice, CudaGpu]]:
    """A segmenter on the fake GPU."""
    with open_gpu() as gpu, CudaDevice(gpu, engine, engine.spec, tiling, CUBIN, **options) as device:
        yield Segmenter(device), device, gpu


def on_host(engine: Engine, tiling: Tiling) -> Segmenter:
    return Segmenter(HostDevice(engine, engine.spec, tiling, 1, engine.input.shape[0]))


def image(height: int, width: int, seed: int = 0, bands: int = 3) -> np.ndarray:
    """Smooth, so that neighbouring pixels share a label, with noise."""
    rng = np.random.default_rng((height, width, seed))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / rng.uniform(5, 40) + x / rng.uniform(5, 40) + rng.uniform(0, 6)) for _ in range(bands)]
    return (127 + 110 * np.stack(waves, 2) + rng.normal(0, 5, (height, width, bands))).clip(0, 255).astype(np.uint8)


def same(mask: Mask, right: Mask) -> bool:
    """Bit by bit."""
    if (mask.confidence is None) != (right.confidence is None):
        return False
    equal = np.array_equal(mask.labels, right.labels)
    return equal and (mask.confidence is None or mask.confidence.tobytes() == right.confidence.tobytes())
