"""Where gather, engine and stitch run: one small interface, which the host and the GPU implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.contract import Float32, Session, UInt8
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling, WindowRow

# Whether confidence is wanted; "bytes" where uint8 does, as `engines.images.write.confidence_bytes` rounds it: then a
# device may save the rest of the way, and float32 comes all the same from those that cannot.
Confidence = bool | Literal["bytes"]


@dataclass(frozen=True)
class Mask:
    """labels: (H, W) uint8, channel index of the winner.

    confidence: (H, W) float32 in 0..1, or None; uint8 only where bytes were asked for.
    """

    labels: UInt8
    confidence: NDArray[Any] | None = None


@dataclass(frozen=True)
class Band:
    """Finished rows [row0, row1) of the image: labels (row1 - row0, W), confidence the same shape or None (`Mask`)."""

    row0: int
    row1: int
    labels: UInt8
    confidence: NDArray[Any] | None


PARTS = ("gather", "engine", "stitch")  # of Timings


@dataclass
class Timings:
    """Seconds spent in each part, summed over every image so far.

    On a GPU the parts are known only where `Device.parts` is set; elsewhere all of a frame counts as engine.
    """

    gather: float = 0.0
    engine: float = 0.0
    stitch: float = 0.0
    windows: int = 0


class LazyRows(ABC):
    """An image (H, W, C) uint8 in a file, of which rows are read as windows need them, from top to bottom.

    What strips take in place of an array: they slice its rows, and nothing else.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3
    shape: tuple[int, int, int]

    @abstractmethod
    def __getitem__(self, rows: slice) -> UInt8:
        """Rows [start, stop).  Raises DeployError."""

    @abstractmethod
    def blank(self, top: int, left: int, height: int, width: int) -> bool:
        """Whether the file has nothing in a part of the rows at hand, so that nobody looks at its labels."""


class WholeFrame(Protocol):
    """One image, held as a whole, on its way through a device.  Use: `put`, `play`, `mask`."""

    def put(self, image: UInt8) -> None:
        """Take the image (H, W, 3) uint8 RGB of this frame's size.  It may be changed again only after the result."""

    def play(self) -> None:
        """Start every row.  On a GPU this does not wait, and may be one recorded graph."""

    @property
    def done(self) -> bool:
        """Whether `mask` has nothing to wait for, as far as is known without waiting."""

    def mask(self) -> Mask:
        """Wait for `play`.  The arrays are the caller's own.  Raises DeployError on NaN or infinite logits."""


class Strips(Protocol):
    """One image of which only the rows at work are held.  Use: `put`, then `advance` and `band` in turn."""

    @property
    def steps(self) -> Sequence[WindowRow]:
        """The rows of windows, in the order that `advance` takes them."""

    def put(self, image: UInt8 | LazyRows) -> None:
        """Take the image (H, W, 3) uint8 RGB of this size.  It may be changed again only after the last band."""

    def advance(self, index: int) -> None:
        """Start gathering and running the windows of row `index` and stitching the rows that it finishes."""

    def band(self, index: int) -> Band:
        """Wait for the rows that `index` finished.  The arrays are the caller's own.

        Raises DeployError on NaN or infinite logits.
        """


class Device(Protocol):
    """Holds an engine, its kernels and its memory.  Not thread-safe.

    parts: whether gather, engine and stitch are timed one by one; on a GPU by events, and then without a graph.
    on_window: called after each window with (done, total) of the current image, where windows are run one by one.
    """

    parts: bool
    on_window: Callable[[int, int], None] | None

    @property
    def name(self) -> str:
        """``host`` or ``cuda``."""

    @property
    def graph(self) -> str:
        """``on`` where frames like the last one are replayed as graphs, or ``off: `` and why; empty on the host."""

    @property
    def contexts(self) -> str:
        """How many execution contexts take turns, ``1: `` and why where two were wanted; empty on the host."""

    @property
    def transfers(self) -> str:
        """How images and masks come and go: ``pinned`` or ``mapped``; empty on the host."""

    @property
    def memory(self) -> int | None:
        """Bytes of the GPU that are in use now, by all programs; None on the host."""

    @property
    def session(self) -> Session: ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tiling(self) -> Tiling: ...

    @property
    def timings(self) -> Timings: ...

    @property
    def in_flight(self) -> int:
        """How many frames may be under way at once."""

    @property
    def batch(self) -> int:
        """Windows per run of the engine."""

    def whole_frame(self, height: int, width: int, confidence: Confidence) -> WholeFrame:
        """A free frame for images of this size, with everything allocated.

        A device may give out the same memory again once the mask was taken.
        """

    def strips(self, height: int, width: int, confidence: Confidence) -> Strips:
        """The same for images of any height, whose memory may be given out again once the last band was taken."""

    def held_logits(self) -> bytes | None:
        """What is held of the logits of the last whole frame, once its mask was taken; None on the host."""

    def first_window(self, image: UInt8) -> Float32:
        """The engine's input (N, 3, h, w) float32, its first window the top left one of `image`; reused later."""

    def engine_ms(self, image: UInt8) -> float:
        """Milliseconds of one run of the engine alone on `first_window`, between memory of the device: no copies."""
