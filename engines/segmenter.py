"""From an image of any size to its labels: gather windows, run the engine, stitch the logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engines.base import BuildConfig, Float32, Session, get_backend
from engines.bundle import ENGINE, MODEL, Manifest, open_bundle
from engines.device.base import Band, Device, Frame, Mask, Timings, UInt8
from engines.device.host import HostDevice
from engines.errors import DeployError
from engines.spec import ModelSpec
from engines.tiling import Tiling

__all__ = ["Band", "Mask", "Segmenter", "Timings", "open_segmenter"]


class Segmenter:
    """Runs one engine in sliding windows on a device.  Not thread-safe."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.spec, self.tiling = device.spec, device.tiling

    @classmethod
    def on_host(cls, session: Session, spec: ModelSpec, tiling: Tiling, threads: int = 0, batch: int = 1) -> Segmenter:
        """Gather and stitch in the C core.  threads: 0 means all cores.  batch: windows per run of the engine."""
        return cls(HostDevice(session, spec, tiling, threads, batch))

    @property
    def session(self) -> Session:
        """The engine alone: windows in, logits out."""
        return self.device.session

    def segment(self, image: UInt8, confidence: bool = False) -> Mask:
        """image: (H, W, 3) uint8 RGB, any size and strides.  Raises DeployError on anything else, or on NaN logits."""
        return self._start(image, confidence).mask()

    def segment_all(self, images: Iterable[UInt8], confidence: bool = False) -> Iterator[Mask]:
        """The masks of `images` in their order, with as many under way at once as the device takes.

        An image is taken from the iterator while those before it are being worked on.
        """
        running: deque[Frame] = deque()
        for image in images:
            running.append(self._start(image, confidence))
            if len(running) >= self.device.in_flight:
                yield running.popleft().mask()
        while running:
            yield running.popleft().mask()

    def bands(self, image: UInt8, confidence: bool = False) -> Iterator[Band]:
        """Like `segment`, but yields rows from top to bottom as soon as they are final, and holds only those.

        The arrays of a band are its own; at most the window rows that touch the band are held as logits.
        """
        _check_image(image)
        frame = self.device.frame(image.shape[0], image.shape[1], confidence, whole=False)
        frame.put(image)
        for step in frame.steps:
            frame.advance(step.index)
            yield frame.band(step.index)

    def first_window(self, image: UInt8) -> Float32:
        """The engine's input (N, 3, h, w); its first window is the top left one of `image`.  Overwritten later."""
        _check_image(image)
        return self.device.first_window(image)

    def _start(self, image: UInt8, confidence: bool) -> Frame:
        _check_image(image)
        frame = self.device.frame(image.shape[0], image.shape[1], confidence, whole=True)
        frame.put(image)
        frame.play()
        return frame


@contextmanager
def open_segmenter(folder: Path, threads: int = 0) -> Iterator[tuple[Segmenter, Manifest]]:
    """Load a bundle that was built on this device.  Raises DeployError, naming the command that rebuilds it."""
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    backend = get_backend(manifest.backend)
    reason = backend.unavailable()
    if reason:
        raise DeployError(f"bundle {folder}: it needs {manifest.backend}, and {reason}")
    config = BuildConfig(
        manifest.precision, threads, batch=manifest.batch, model=bundle.path(MODEL), tensorrt=manifest.tensorrt
    )
    reason = backend.refuses(manifest.sdk, manifest.device, config)
    if reason:
        raise DeployError(f"bundle {folder}: {reason}; rebuild it here: deploy.py build-engine {folder} -o {folder}")
    with backend.load(bundle.path(ENGINE).read_bytes(), config) as session:
        yield Segmenter.on_host(session, manifest.spec, manifest.tiling, threads, manifest.batch), manifest


def _check_image(image: UInt8) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DeployError(f"image: got {image.shape} {image.dtype}, expected (H, W, 3) uint8 RGB, at least one pixel")
