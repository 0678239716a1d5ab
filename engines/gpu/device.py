"""The GPU as a device: gather, engine and stitch without leaving its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from engines.contract import DeviceSession, Float32, Log, Tensor, UInt8
from engines.errors import DeployError
from engines.gpu.context import CudaGpu
from engines.gpu.engine_alone import EngineAlone
from engines.gpu.frames import CudaFrame, CudaStrips, FrameInStrips
from engines.gpu.host_copies import DTYPES
from engines.gpu.kernels import MAX_LEFTS
from engines.gpu.launcher import Launcher
from engines.gpu.pool import IN_FLIGHT, Pool, Slot
from engines.spec import ModelSpec
from engines.tiling.device import WholeFrame
from engines.tiling.placement import Tiling


class CudaDevice:
    """One engine on one GPU.  Close it before the GPU and the session.

    cubin: the kernels for this GPU, as `compile_kernels` makes them.  log: told (``graph``, why) when frames cannot be
    recorded.  Raises DeployError when the engine does not fit the tiling, or the kernels the GPU.
    """

    name = "cuda"
    in_flight = IN_FLIGHT

    def __init__(
        self, gpu: CudaGpu, session: DeviceSession, spec: ModelSpec, tiling: Tiling, cubin: bytes,
        log: Log = lambda step, text: None,
    ) -> None:  # fmt: skip
        _check(session, tiling, spec)
        self.gpu, self.session, self.spec, self.tiling = gpu, session, spec, tiling
        self._launcher = Launcher(gpu, session=session, spec=spec, tiling=tiling, cubin=cubin, log=log)
        self.batch, self.timings = self._launcher.batch, self._launcher.timings
        self.transfers = "mapped" if gpu.info.integrated else "pinned"
        self.pool = Pool(gpu, tiling, self.batch, window_bytes=self._launcher.window_bytes, channels=len(spec.mean))
        self._slot: Slot | None = None  # of the last frame of a whole image

    @property
    def parts(self) -> bool:
        return self._launcher.parts

    @parts.setter
    def parts(self, value: bool) -> None:
        self._launcher.parts = value

    @property
    def on_window(self) -> Callable[[int, int], None] | None:
        return self._launcher.on_window

    @on_window.setter
    def on_window(self, value: Callable[[int, int], None] | None) -> None:
        self._launcher.on_window = value

    @property
    def graph(self) -> str:
        """``on`` where frames like the last one are recorded as graphs and replayed, otherwise ``off: `` and why."""
        reason = self._launcher.unrecorded(None if self._slot is None else self._slot.plan)
        return "on" if reason is None else f"off: {reason}"

    def whole_frame(self, height: int, width: int, confidence: bool) -> WholeFrame:
        slot = self.pool.take(height, width, confidence, whole=True)
        self._slot = slot
        return CudaFrame(self._launcher, slot) if slot.plan.whole else FrameInStrips(self._launcher, slot)

    def strips(self, height: int, width: int, confidence: bool) -> CudaStrips:
        return CudaStrips(self._launcher, self.pool.take(height, width, confidence, whole=False))

    def held_logits(self) -> bytes | None:
        if self._slot is None or not self._slot.addresses:  # none yet, or its size is gone
            return None
        return self._launcher.logits(self._slot)

    def first_window(self, image: UInt8) -> Float32:
        return self._launcher.first_window(image)

    def engine_ms(self, image: UInt8) -> float:
        with EngineAlone(self.gpu, self.session, self.first_window(image)) as alone:
            alone.run()  # what an engine sets up for new addresses is not timed
            begin = time.perf_counter()
            alone.run()
            return 1e3 * (time.perf_counter() - begin)

    def close(self) -> None:
        """Free everything.  Does not raise after the GPU was lost."""
        self._launcher.close()
        self.pool.close()

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
    if source.shape[0] > MAX_LEFTS:
        raise DeployError(f"engine: got a batch of {source.shape[0]} windows, expected {MAX_LEFTS} at most")
    if len(target.shape) != 4 or target.shape[:2] != (source.shape[0], channels) or min(target.shape) < 1:
        raise DeployError(
            f"engine: got output {_say(target)}, expected ({source.shape[0]}, {channels}, h, w); build it again"
        )
    for tensor in (source, target):
        if tensor.dtype not in DTYPES:
            raise DeployError(f"engine: got {_say(tensor)}, expected one of {', '.join(DTYPES)}; build it again")


def _say(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.shape} {tensor.dtype}"
