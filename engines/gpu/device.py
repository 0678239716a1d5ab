"""The GPU as a device: gather, engine and stitch without leaving its memory."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from engines.contract import DeviceSession, Float32, Log, Tensor, UInt8
from engines.errors import DeployError
from engines.gpu.context import CudaGpu
from engines.gpu.frames import CudaFrame, CudaStrips, FrameInStrips
from engines.gpu.host_copies import DTYPES
from engines.gpu.kernels import MAX_WINDOWS
from engines.gpu.launcher import Launcher
from engines.gpu.pool import IN_FLIGHT
from engines.spec import ModelSpec
from engines.tiling.device import Confidence
from engines.tiling.placement import Tiling


class CudaDevice:
    """One engine on one GPU.  Close it before the GPU and the session.

    cubin: the kernels for this GPU, as `compile_kernels` makes them.  log: told (``graph``, why) when frames cannot be
    recorded.  Raises DeployError when the engine does not fit the tiling, or the kernels the GPU.
    """

    name = "cuda"

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, cubin: bytes,
        log: Log = lambda step, text: None,
    ) -> None:  # fmt: skip
        _check(session, tiling, spec)
        self.gpu, self.session, self.spec, self.tiling = gpu, session, spec, tiling
        self.launcher = Launcher(gpu, session=session, spec=spec, tiling=tiling, cubin=cubin, log=log)
        self.batch, self.timings = self.launcher.run.batch, self.launcher.timings
        self.transfers = "mapped" if gpu.info.integrated else "pinned"
        self._last: tuple[int, int, Confidence] | None = None  # height, width and confidence of the last whole image
        self._whole, self._in_flight = True, IN_FLIGHT  # for images like that
        self._frame: CudaFrame | FrameInStrips | None = None

    @property
    def in_flight(self) -> int:
        """For images like the last one: more where few windows are in one, so that those of several fill a batch."""
        return self._in_flight

    @property
    def memory(self) -> int:
        return self.gpu.info.memory - self.gpu.free_memory()

    @property
    def parts(self) -> bool:
        return self.launcher.run.parts

    @parts.setter
    def parts(self, value: bool) -> None:
        self.launcher.run.parts = value

    @property
    def on_window(self) -> Callable[[int, int], None] | None:
        return self.launcher.on_window

    @on_window.setter
    def on_window(self, value: Callable[[int, int], None] | None) -> None:
        self.launcher.on_window = value

    @property
    def graph(self) -> str:
        """``on`` where windows are replayed as a recorded graph, otherwise ``off: `` and why."""
        reason = self.launcher.run.unrecorded()
        return "on" if reason is None else f"off: {reason}"

    @property
    def contexts(self) -> str:
        """How many execution contexts take turns: ``2``, ``1``, or ``1: `` and why where two were asked for."""
        run = self.launcher.run
        return f"{run.lanes}: {run.one_because}" if run.one_because else str(run.lanes)

    def use_contexts(self, count: int) -> None:
        """One, or two where the GPU has the memory, and until an image wants that: `contexts` says what is."""
        self._last = None
        if count == 1:
            self.launcher.run.narrow("")
        else:
            self.launcher.run.widen()

    def batch_ms(self, batches: int, contexts: int) -> float:
        """Milliseconds of one batch, where so many are started at once in as many of its contexts."""
        return self.launcher.run.batch_ms(batches, contexts)

    def whole_frame(self, height: int, width: int, confidence: Confidence) -> CudaFrame | FrameInStrips:
        if self._last != (height, width, confidence):
            bands = len(self.spec.mean)
            pixel = 4 if bands == 3 else bands  # at most: see `bytes_a_pixel`
            lanes, run = 0, self.launcher.run
            while lanes != run.lanes:  # without a second, less is held
                lanes = run.lanes
                plan = self.launcher.plan((height, width), pixel, confidence, whole=True)
                self._whole, self._in_flight = self.launcher.whole(plan), self.launcher.in_flight(plan)
            self._last = height, width, confidence
        self._frame = (CudaFrame if self._whole else FrameInStrips)(self.launcher, (height, width), confidence)
        return self._frame

    def strips(self, height: int, width: int, confidence: Confidence) -> CudaStrips:
        return CudaStrips(self.launcher, (height, width), confidence)

    def held_logits(self) -> bytes | None:
        return None if self._frame is None else self._frame.logits()

    def first_window(self, image: UInt8) -> Float32:
        return self.launcher.first_window(image)

    def engine_ms(self, image: UInt8) -> float:
        return self.launcher.engine_ms(image)

    def close(self) -> None:
        """Free everything.  Does not raise after the GPU was lost."""
        self._frame = None
        self.launcher.close()

    def __enter__(self) -> CudaDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(session: DeviceSession, tiling: Tiling, spec: ModelSpec) -> None:
    source, target = session.input, session.output
    bands, channels = len(spec.mean), spec.channels
    window = (tiling.window_h, tiling.window_w)
    if len(source.shape) != 4 or source.shape[0] < 1 or source.shape[1:] != (bands, *window):
        raise DeployError(
            f"engine: got input {_say(source)}, expected (N, {bands}, {window[0]}, {window[1]}); build it again"
        )
    if source.shape[0] > MAX_WINDOWS:
        raise DeployError(f"engine: got a batch of {source.shape[0]} windows, expected {MAX_WINDOWS} at most")
    if len(target.shape) != 4 or target.shape[:2] != (source.shape[0], channels) or min(target.shape) < 1:
        raise DeployError(
            f"engine: got output {_say(target)}, expected ({source.shape[0]}, {channels}, h, w); build it again"
        )
    for tensor in (source, target):
        if tensor.dtype not in DTYPES:
            raise DeployError(f"engine: got {_say(tensor)}, expected one of {', '.join(DTYPES)}; build it again")


def _say(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.shape} {tensor.dtype}"
