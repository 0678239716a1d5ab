"""From an image of any size to its labels: gather windows, run the engine, stitch the logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from engines.backends import get_backend
from engines.bundle import KERNELS, Bundle, Manifest, open_bundle
from engines.contract import Backend, BuildConfig, DeviceSession, Float32, Log, Session, UInt8
from engines.errors import DeployError, NotFiniteError
from engines.gpu.info import Fingerprint
from engines.images.bands import Decoded
from engines.images.read import MAX_PIXELS, Admit, read_picture
from engines.spec import IGNORE_LABEL, ModelSpec
from engines.stream.flow import Intake, flow
from engines.tiling.device import PARTS, Band, Confidence, Device, LazyRows, Mask, Timings
from engines.tiling.host import HostDevice
from engines.tiling.not_finite import explained
from engines.tiling.placement import Tiling, WindowRow
from engines.tiling.sizes import Resize
from engines.tiling.tail import HostTail, Tail
from engines.views.device import DeviceOfViews, ViewsDevice
from engines.views.views import ImageViews
from engines.views.work import TimedViews, ViewTimes

__all__ = ["Band", "Mask", "Running", "Segmenter", "Timings", "open_on_device", "open_segmenter"]


class Segmenter:
    """Runs one engine in sliding windows on a device.  Not thread-safe.  precision: of the engine."""

    def __init__(self, device: Device, precision: str = "fp32") -> None:
        self.device, self.precision = device, precision
        self.spec, self.tiling = device.spec, device.tiling

    @classmethod
    def on_host(
        cls, session: Session, spec: ModelSpec, tiling: Tiling, threads: int = 0, batch: int = 1,
        precision: str = "fp32",
    ) -> Segmenter:  # fmt: skip
        """Gather and stitch in the C core.  threads: 0 means all cores.  batch: windows per run of the engine."""
        return cls(HostDevice(session, spec=spec, tiling=tiling, threads=threads, batch=batch), precision)

    def as_built(self) -> Segmenter:
        """The same engine on images that are brought first to the size that its bundle is for."""
        resize = Resize.parse(self.tiling.resize)
        return self if resize is None else self.on_views(ImageViews(resize))

    def on_views(self, views: ImageViews, threads: int = 0) -> Segmenter:
        """The same engine on `views` of each image, which are merged where it runs: on the host by `threads`; 0 means
        all cores.  Raises DeployError where a bundle's kernels for the GPU are older than that.
        """
        if self.device.name == "host":
            return Segmenter(ViewsDevice(self.device, views, threads), self.precision)
        from engines.gpu.device import CudaDevice
        from engines.gpu.views.device import CudaViews

        assert isinstance(self.device, CudaDevice)
        return Segmenter(CudaViews(self.device, views, threads), self.precision)

    @property
    def views(self) -> ImageViews:
        """How images are run."""
        return self.device.views if isinstance(self.device, DeviceOfViews) else ImageViews()

    @property
    def session(self) -> Session:
        """The engine alone: windows in, logits out."""
        return self.device.session

    def segment(self, image: UInt8, confidence: Confidence = False) -> Mask:
        """image: (H, W, 3) uint8 RGB, any size and strides.  Raises DeployError on anything else, or on NaN logits."""
        return self.start(image, confidence).mask()

    def stream(
        self, images: Iterable[UInt8 | Path | str], confidence: Confidence = False, max_pixels: int = MAX_PIXELS
    ) -> Iterator[Mask]:
        """The masks of `images` in their order: arrays as for `segment`, or files.

        Files are read by threads, ahead of the device and in bounded memory, and labels of what they hide (alpha 0,
        nodata) are 255.  The iterator itself is advanced in the caller's thread, where there are arrays one ahead of
        the device; an array may be changed again once its mask was yielded.
        One that cannot be read or worked on raises DeployError after the masks of those before it, and so does the
        iterator's own DeployError.
        """

        def read(image: UInt8 | Path | str, admit: Admit) -> Decoded:
            if isinstance(image, Path | str):
                return read_picture(Path(image), max_pixels, self.spec.pixels, admit)
            return Decoded(image)

        source = Intake[UInt8 | Path | str, Decoded](
            images, read, lambda picture: picture.pixels, lambda image: not isinstance(image, Path | str)
        )
        with closing(flow(self, source, ordered=True, confidence=confidence)) as outcomes:
            for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                mask, picture = outcome.mask, outcome.read.value
                assert mask is not None
                assert picture is not None
                if picture.hidden is not None:
                    mask.labels[picture.hidden] = IGNORE_LABEL
                yield mask
                outcome.release()
                del outcome, mask, picture

    def bands(self, image: UInt8 | LazyRows, confidence: Confidence = False) -> Iterator[Band]:
        """Like `segment`, but yields rows from top to bottom as soon as they are final, and holds only those.

        image: as for `segment`, or one in a file, of which no more than a row of windows needs is held.
        The arrays of a band are its own; at most the window rows that touch the band are held as logits.
        """
        _check_image(image, len(self.spec.mean))
        strips = self.device.strips(image.shape[0], image.shape[1], confidence)
        strips.put(image)
        for step in strips.steps:
            try:
                strips.advance(step.index)
                band = strips.band(step.index)
            except NotFiniteError as error:
                rows = [strips.steps[index] for index in step.held]
                raise explained(self.device, _windows(self.device, image, rows), self.precision) from error
            yield band

    def start(self, image: UInt8, confidence: Confidence = False) -> Running:
        """Begin to segment an image: at most `device.in_flight` at once."""
        _check_image(image, len(self.spec.mean))
        return Running(self.device, image, confidence, self.precision)

    def first_window(self, image: UInt8) -> Float32:
        """The engine's input (N, 3, h, w); its first window is the top left one of `image`.  Overwritten later."""
        _check_image(image, len(self.spec.mean))
        return self.device.first_window(image)


class Running:
    """An image on its way.  timings: of this image alone, complete once its mask was taken.

    seconds: until then from its start, with what others took in between.
    """

    def __init__(self, device: Device, image: UInt8, confidence: Confidence, precision: str) -> None:
        self._device, self._image, self._precision = device, image, precision
        self.timings, self.seconds, self._begin = Timings(), 0.0, time.perf_counter()
        with self._counted():
            self._frame = device.whole_frame(image.shape[0], image.shape[1], confidence)
            self._frame.put(image)
            self._frame.play()

    @property
    def done(self) -> bool:
        """Whether its mask has nothing to wait for."""
        return self._frame.done

    def mask(self) -> Mask:
        """Wait for it, once.  Raises NotFiniteError, which names the window, on NaN or infinite logits."""
        with self._counted():
            mask = self._frame.mask()
        self.seconds = time.perf_counter() - self._begin
        return mask

    @property
    def views(self) -> tuple[ViewTimes, ...]:
        """What each view took, where there are several or one of another size."""
        return self._frame.times if isinstance(self._frame, TimedViews) else ()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        before = replace(self._device.timings)
        try:
            yield
        except NotFiniteError as error:
            rows = self._device.tiling.window_rows(*self._image.shape[:2])
            raise explained(self._device, _windows(self._device, self._image, rows), self._precision) from error
        after = self._device.timings
        for part in (*PARTS, "windows"):
            own = getattr(self.timings, part) + getattr(after, part) - getattr(before, part)
            setattr(self.timings, part, own)


class Proves(Protocol):
    """See `open_segmenter`."""

    log: Log

    def __call__(self, bundle: Bundle, backend: Backend, segmenter: Segmenter, kernels: bytes, /) -> Manifest: ...


@contextmanager
def open_segmenter(
    folder: Path, threads: int = 0, host_code: bool = False,
    prove: Proves | None = None,
    threshold: float | None = None, views: Callable[[Manifest], ImageViews] | None = None,
) -> Iterator[tuple[Segmenter, Manifest]]:  # fmt: skip
    """Load a bundle that was built on this device.  Raises DeployError, naming the command that rebuilds it.

    host_code: allow an engine that brings native code of its own (built with --version-compatible).
    prove: verifies an engine that was not, here, and says so in the manifest (engines.proof.first_run.prover), and how
    many execution contexts serve it best; without it such an engine is refused, and one context serves.
    threshold: of a network with one channel, in place of what the bundle says; also in the manifest that is returned.
    views: how images are run, given the manifest; None brings them to the size that the bundle is for.
    """
    bundle = open_bundle(folder)
    manifest = replace(bundle.manifest, spec=bundle.manifest.spec.at_threshold(threshold))
    backend = get_backend(manifest.backend)
    reason = backend.unavailable()
    if reason:
        raise DeployError(f"bundle {folder}: it needs {manifest.backend}, and {reason}")
    reason = backend.refuses(manifest.sdk, manifest.device, bundle.config())
    if reason:
        raise DeployError(f"bundle {folder}: {reason}; rebuild it here: deploy.py build-engine {folder} -o {folder}")
    kernels = _kernels(bundle) if backend.on_gpu else None
    with (
        bundle.engine(backend, threads, host_code) as (blob, config),
        open_on_device(
            backend,
            blob,
            config=config,
            spec=manifest.spec,
            tiling=manifest.tiling,
            kernels=kernels,
            tail=bundle.tail(),
            log=None if prove is None else prove.log,
        ) as segmenter,
    ):
        if kernels is not None:
            manifest = _ready(bundle, manifest, backend, segmenter, kernels, prove)
        if views is None:
            yield segmenter.as_built(), manifest
        else:
            wanted = views(manifest)
            yield segmenter if wanted.plain else segmenter.on_views(wanted, threads), manifest


def _ready(
    bundle: Bundle, manifest: Manifest, backend: Backend, segmenter: Segmenter, kernels: bytes, prove: Proves | None
) -> Manifest:  # fmt: skip
    """An engine on a GPU is proven there, and has as many execution contexts as serve it best."""
    from engines.gpu.device import CudaDevice

    here = backend.version(), backend.device()
    proven = here in manifest.proven_on
    if not proven and (prove is None or manifest.spec != bundle.manifest.spec):  # the proof is of its own threshold
        how = "deploy.py run does that, without --threshold"
        raise DeployError(f"bundle {bundle.folder}: not yet verified on {here[1]}; {how}")
    if prove is not None and (not proven or manifest.contexts_on(*here) is None):
        manifest = replace(prove(bundle, backend, segmenter, kernels), spec=manifest.spec)
    assert isinstance(segmenter.device, CudaDevice)
    segmenter.device.use_contexts(manifest.contexts_on(*here) or 1)
    return manifest


def _kernels(bundle: Bundle) -> bytes:
    """The bundle's, or where it has none for the GPU here, compiled for it."""
    from engines.gpu.compile import compile_kernels, fits
    from engines.gpu.context import gpu_info

    devices = [bundle.manifest.device, *(device for _, device in bundle.manifest.proven_on)]
    built = next(filter(None, map(Fingerprint.parse, devices)), None)
    here, there = gpu_info().sm, KERNELS in bundle.manifest.files
    if there and (built is None or fits(built.sm, here)):
        return bundle.read(KERNELS)
    try:
        return compile_kernels(here)
    except DeployError as error:
        has = f"it is for sm_{built.sm[0]}{built.sm[1]}" if there and built else "there is none"
        raise DeployError(
            f"{bundle.folder / KERNELS}: {has}, this GPU is sm_{here[0]}{here[1]}, and compiling it failed: {error}"
        ) from error


@contextmanager
def open_on_device(
    backend: Backend, blob: bytes, config: BuildConfig, spec: ModelSpec, tiling: Tiling, kernels: bytes | None,
    tail: Tail | None, log: Log | None = None,
) -> Iterator[Segmenter]:  # fmt: skip
    """Load an engine where its backend runs, and gather and stitch there too.

    kernels: tile.cu compiled for this GPU; None on the host.  tail: what makes logits of the engine's maps; None of an
    engine that gives logits.  log: of what happens on a GPU; None takes the configuration's.
    """
    with ExitStack() as stack:
        if not backend.on_gpu:
            engine = stack.enter_context(backend.load(blob, config))
            yield Segmenter.on_host(
                engine if tail is None else HostTail(engine, tail, config.threads), spec=spec, tiling=tiling,
                threads=config.threads, batch=config.batch, precision=config.precision,
            )  # fmt: skip
            return
        from engines.gpu.context import open_gpu
        from engines.gpu.device import CudaDevice
        from engines.gpu.tail import GpuTail

        gpu = stack.enter_context(open_gpu())
        session = cast(DeviceSession, stack.enter_context(backend.load(blob, config)))
        assert kernels is not None
        if tail is not None:
            session = stack.enter_context(GpuTail(gpu, engine=session, tail=tail, cubin=kernels))
        device = CudaDevice(gpu, session=session, spec=spec, tiling=tiling, cubin=kernels, log=log or config.log)
        yield Segmenter(stack.enter_context(device), config.precision)


def _windows(
    device: Device, image: UInt8 | LazyRows, rows: Sequence[WindowRow]
) -> Sequence[tuple[UInt8 | LazyRows, Sequence[WindowRow]]]:
    """What the engine was run on: the rows of windows of an image, or those of each of its views."""
    if isinstance(device, DeviceOfViews) and isinstance(image, np.ndarray):
        return device.placed(image)
    return [(image, rows)]


def _check_image(image: UInt8 | LazyRows, channels: int) -> None:
    if image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8 or 0 in image.shape:
        what = "uint8 RGB" if channels == 3 else "uint8"
        raise DeployError(
            f"image: got {image.shape} {image.dtype}, expected (H, W, {channels}) {what}, at least one pixel"
        )
