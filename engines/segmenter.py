"""From an image of any size to its labels: gather windows, run the engine, stitch the logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from engines.backends import get_backend
from engines.bundle import ENGINE, KERNELS, Manifest, open_bundle
from engines.contract import Backend, BuildConfig, DeviceSession, Float32, Session, UInt8
from engines.errors import DeployError
from engines.gpu.info import Fingerprint
from engines.spec import ModelSpec
from engines.tiling.device import PARTS, Band, Device, Mask, Timings
from engines.tiling.host import HostDevice
from engines.tiling.placement import Tiling

__all__ = ["Band", "Mask", "Running", "Segmenter", "Timings", "open_on_device", "open_segmenter"]


class Segmenter:
    """Runs one engine in sliding windows on a device.  Not thread-safe."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.spec, self.tiling = device.spec, device.tiling

    @classmethod
    def on_host(cls, session: Session, spec: ModelSpec, tiling: Tiling, threads: int = 0, batch: int = 1) -> Segmenter:
        """Gather and stitch in the C core.  threads: 0 means all cores.  batch: windows per run of the engine."""
        return cls(HostDevice(session, spec=spec, tiling=tiling, threads=threads, batch=batch))

    @property
    def session(self) -> Session:
        """The engine alone: windows in, logits out."""
        return self.device.session

    def segment(self, image: UInt8, confidence: bool = False) -> Mask:
        """image: (H, W, 3) uint8 RGB, any size and strides.  Raises DeployError on anything else, or on NaN logits."""
        return self.start(image, confidence).mask()

    def segment_all(self, images: Iterable[UInt8], confidence: bool = False) -> Iterator[Mask]:
        """The masks of `images` in their order, with as many under way at once as the device takes.

        An image is taken from the iterator while those before it are being worked on.  One that cannot be worked on
        raises DeployError after the masks of those before it, and so does one that the iterator cannot read.
        """
        running: deque[Running] = deque()
        source = iter(images)
        while True:
            try:
                try:
                    image = next(source)
                except StopIteration:
                    break
                running.append(self.start(image, confidence))
            except DeployError:
                while running:
                    yield running.popleft().mask()
                raise
            if len(running) >= self.device.in_flight:
                yield running.popleft().mask()
        while running:
            yield running.popleft().mask()

    def bands(self, image: UInt8, confidence: bool = False) -> Iterator[Band]:
        """Like `segment`, but yields rows from top to bottom as soon as they are final, and holds only those.

        The arrays of a band are its own; at most the window rows that touch the band are held as logits.
        """
        _check_image(image)
        strips = self.device.strips(image.shape[0], image.shape[1], confidence)
        strips.put(image)
        for step in strips.steps:
            strips.advance(step.index)
            yield strips.band(step.index)

    def start(self, image: UInt8, confidence: bool = False) -> Running:
        """Begin to segment an image: at most `device.in_flight` at once.  On the host it is done when this returns."""
        _check_image(image)
        return Running(self.device, image, confidence)

    def first_window(self, image: UInt8) -> Float32:
        """The engine's input (N, 3, h, w); its first window is the top left one of `image`.  Overwritten later."""
        _check_image(image)
        return self.device.first_window(image)


class Running:
    """An image on its way.  timings: of this image alone, complete once its mask was taken."""

    def __init__(self, device: Device, image: UInt8, confidence: bool) -> None:
        self._device = device
        self.timings = Timings()
        with self._counted():
            self._frame = device.whole_frame(image.shape[0], image.shape[1], confidence)
            self._frame.put(image)
            self._frame.play()

    def mask(self) -> Mask:
        """Wait for it, once.  Raises DeployError on NaN or infinite logits."""
        with self._counted():
            return self._frame.mask()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        before = replace(self._device.timings)
        yield
        after = self._device.timings
        for part in (*PARTS, "windows"):
            own = getattr(self.timings, part) + getattr(after, part) - getattr(before, part)
            setattr(self.timings, part, own)


@contextmanager
def open_segmenter(
    folder: Path, threads: int = 0, threshold: float | None = None
) -> Iterator[tuple[Segmenter, Manifest]]:
    """Load a bundle that was built on this device.  Raises DeployError, naming the command that rebuilds it.

    threshold: of a network with one channel, in place of what the bundle says; also in the manifest that is returned.
    """
    bundle = open_bundle(folder)
    manifest = replace(bundle.manifest, spec=bundle.manifest.spec.at_threshold(threshold))
    backend = get_backend(manifest.backend)
    reason = backend.unavailable()
    if reason:
        raise DeployError(f"bundle {folder}: it needs {manifest.backend}, and {reason}")
    config = bundle.config(threads)
    reason = backend.refuses(manifest.sdk, manifest.device, config)
    if reason:
        raise DeployError(f"bundle {folder}: {reason}; rebuild it here: deploy.py build-engine {folder} -o {folder}")
    if backend.on_gpu and KERNELS not in manifest.files:
        raise DeployError(f"bundle {folder}: {KERNELS} is missing; build the bundle again")
    kernels = _kernels(bundle.path(KERNELS), manifest) if backend.on_gpu else None
    blob = bundle.path(ENGINE).read_bytes()
    with open_on_device(
        backend, blob, config=config, spec=manifest.spec, tiling=manifest.tiling, kernels=kernels
    ) as segmenter:
        yield segmenter, manifest


def _kernels(path: Path, manifest: Manifest) -> bytes:
    """The bundle's, or where its engine was built to load on other GPUs too, compiled for the one here."""
    from engines.gpu.compile import compile_kernels, fits
    from engines.gpu.context import gpu_info

    built, here = Fingerprint.parse(manifest.device), gpu_info().sm
    if built is None or fits(built.sm, here):
        return path.read_bytes()
    try:
        return compile_kernels(here)
    except DeployError as error:
        raise DeployError(
            f"{path}: it is for sm_{built.sm[0]}{built.sm[1]}, this GPU is sm_{here[0]}{here[1]}, and compiling it "
            f"here failed: {error}"
        ) from error


@contextmanager
def open_on_device(
    backend: Backend, blob: bytes, config: BuildConfig, spec: ModelSpec, tiling: Tiling, kernels: bytes | None
) -> Iterator[Segmenter]:
    """Load an engine where its backend runs, and gather and stitch there too.

    kernels: tile.cu compiled for this GPU; None on the host.
    """
    with ExitStack() as stack:
        if not backend.on_gpu:
            session = stack.enter_context(backend.load(blob, config))
            yield Segmenter.on_host(session, spec=spec, tiling=tiling, threads=config.threads, batch=config.batch)
            return
        from engines.gpu.context import open_gpu
        from engines.gpu.device import CudaDevice

        gpu = stack.enter_context(open_gpu())
        session = stack.enter_context(backend.load(blob, config))
        assert kernels is not None
        device = CudaDevice(
            gpu, session=cast(DeviceSession, session), spec=spec, tiling=tiling, cubin=kernels, log=config.log
        )
        yield Segmenter(stack.enter_context(device))


def _check_image(image: UInt8) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DeployError(f"image: got {image.shape} {image.dtype}, expected (H, W, 3) uint8 RGB, at least one pixel")
