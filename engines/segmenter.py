"""From an image of any size to its labels: gather windows, run the engine, stitch the logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines import tile
from engines.base import BuildConfig, Float32, Session, get_backend
from engines.bundle import ENGINE, Manifest, open_bundle
from engines.errors import DeployError
from engines.spec import ModelSpec
from engines.tiling import Tiling

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Mask:
    """labels: (H, W) uint8, channel index of the winner.  confidence: (H, W) float32 in 0..1, or None."""

    labels: UInt8
    confidence: Float32 | None = None


@dataclass(frozen=True)
class Band:
    """Finished rows [row0, row1) of the image: labels (row1 - row0, W), confidence the same shape or None."""

    row0: int
    row1: int
    labels: UInt8
    confidence: Float32 | None


@dataclass
class Timings:
    """Seconds spent in each part, summed over every image so far."""

    gather: float = 0.0
    engine: float = 0.0
    stitch: float = 0.0
    windows: int = 0


@dataclass
class Segmenter:
    """Runs one engine in sliding windows.  threads: for gather and stitch; 0 means all cores of this process.

    on_window: called after each window with (done, total) of the current image.
    """

    session: Session
    spec: ModelSpec
    tiling: Tiling
    threads: int = 0
    on_window: Callable[[int, int], None] | None = None
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self._size = (self.tiling.window_h, self.tiling.window_w)
        self._weights = tile.blend_weights(self.tiling.blend, *self._size)
        self._batch = np.empty((1, 3, *self._size), np.float32)

    def segment(self, image: UInt8, confidence: bool = False) -> Mask:
        """image: (H, W, 3) uint8 RGB, any size and strides.  Raises DeployError on anything else, or on NaN logits."""
        _check_image(image)
        labels = np.empty(image.shape[:2], np.uint8)
        certainty = np.empty(image.shape[:2], np.float32) if confidence else None
        for _ in self._bands(image, labels, certainty):
            pass
        return Mask(labels, certainty)

    def bands(self, image: UInt8, confidence: bool = False) -> Iterator[Band]:
        """Like `segment`, but yields rows from top to bottom as soon as they are final, and holds only those.

        The arrays of a band are its own; at most the window rows that touch the band are held as logits.
        """
        _check_image(image)
        yield from self._bands(image, None, True if confidence else None)

    def first_window(self, image: UInt8) -> Float32:
        """The engine's input (1, 3, h, w) for the top left window of `image`; overwritten by the next call."""
        _check_image(image)
        self._gather(image, 0, 0)
        return self._batch

    def _bands(self, image: UInt8, labels: UInt8 | None, confidence: Float32 | bool | None) -> Iterator[Band]:
        height, width = image.shape[:2]
        tops, lefts = self.tiling.placements(height, width)
        total = len(tops) * len(lefts)
        held: list[tuple[int, list[Float32]]] = []
        start = 0
        for index, top in enumerate(tops):
            row = []
            for column, left in enumerate(lefts):
                row.append(self._run(image, top, left))
                if self.on_window:
                    self.on_window(index * len(lefts) + column + 1, total)
            held.append((top, row))
            end = tops[index + 1] if index + 1 < len(tops) else height
            yield self._stitch(held, lefts, (height, width), (start, end), labels, confidence)
            start = end
            held = [(t, logits) for t, logits in held if t + self._size[0] > start]

    def _run(self, image: UInt8, top: int, left: int) -> Float32:
        begin = time.perf_counter()
        self._gather(image, top, left)
        gathered = time.perf_counter()
        logits: Float32 = self.session.run(self._batch)[0].copy()  # the session may reuse its output
        self.timings.gather += gathered - begin
        self.timings.engine += time.perf_counter() - gathered
        self.timings.windows += 1
        return logits

    def _gather(self, image: UInt8, top: int, left: int) -> None:
        tile.gather(
            image, top, left, self._size, self.spec.mean, self.spec.std,
            order=self.spec.order, padding=self.tiling.padding, out=self._batch[0], threads=self.threads,
        )  # fmt: skip

    def _stitch(
        self,
        held: list[tuple[int, list[Float32]]],
        lefts: list[int],
        size: tuple[int, int],
        rows: tuple[int, int],
        labels: UInt8 | None,
        confidence: Float32 | bool | None,
    ) -> Band:
        begin = time.perf_counter()
        placed = [(top, left, logits) for top, row in held for left, logits in zip(lefts, row, strict=True)]
        if isinstance(confidence, np.ndarray):
            confidence = confidence[rows[0] : rows[1]]
        out, certainty = tile.stitch(
            [logits for _, _, logits in placed], [top for top, _, _ in placed], [left for _, left, _ in placed],
            self._size, size, rows=rows, weights=self._weights,
            labels=None if labels is None else labels[rows[0] : rows[1]],
            confidence=False if confidence is None else confidence, threads=self.threads,
        )  # fmt: skip
        self.timings.stitch += time.perf_counter() - begin
        return Band(*rows, out, certainty)


@contextmanager
def open_segmenter(folder: Path, threads: int = 0) -> Iterator[tuple[Segmenter, Manifest]]:
    """Load a bundle that was built on this device.  Raises DeployError, naming the command that rebuilds it."""
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    backend = get_backend(manifest.backend)
    reason = backend.unavailable()
    if reason:
        raise DeployError(f"bundle {folder}: it needs {manifest.backend}, and {reason}")
    for what, built, here in (
        ("with", manifest.sdk, backend.version()),
        ("on", manifest.device, backend.device()),
    ):
        if built != here:
            raise DeployError(
                f"bundle {folder}: built {what} {built!r}, but this is {here!r}; "
                f"rebuild it here: deploy.py build-engine {folder} -o {folder}"
            )
    config = BuildConfig(manifest.precision, threads)
    with backend.load(bundle.path(ENGINE).read_bytes(), config) as session:
        yield Segmenter(session, manifest.spec, manifest.tiling, threads), manifest


def _check_image(image: UInt8) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DeployError(f"image: got {image.shape} {image.dtype}, expected (H, W, 3) uint8 RGB, at least one pixel")
