"""The contract between the runtime and an inference engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.errors import DeployError
from engines.records import read_record

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Log = Callable[[str, str], None]  # (step, what happened)

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
PACK = 128  # elements: a multiple of 256 bytes in every type


@dataclass(frozen=True)
class TensorRTOptions:
    """What TensorRT's builder is asked for; kept in the manifest, so that a rebuild asks for the same.

    workspace: bytes that tactics may use, or None for a limit that leaves a shared-memory board usable.
    level: builder optimisation level 0..5, or None for TensorRT's default.  aux_streams: None lets TensorRT choose.
    version_compatible: the engine also loads in later TensorRT.  hardware: ``exact``, ``same_cc`` (every GPU of this
    compute capability) or ``ampere_plus``.  strip_weights: the engine holds no weights and takes them from the bundle's
    graph when it is loaded.
    """

    workspace: int | None = None
    level: int | None = None
    aux_streams: int | None = None
    version_compatible: bool = False
    hardware: str = "exact"
    strip_weights: bool = False

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TensorRTOptions:
        """Inverse of `to_json`; older bundles also hold ``dla``, null in all of them.  Raises DeployError."""
        known = {name: value for name, value in body.items() if name != "dla"} if isinstance(body, Mapping) else body
        return read_record(cls, known, "TensorRT options", "build the bundle again")

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class BuildConfig:
    """How an engine is compiled, and loaded again.

    threads: 0 lets the backend choose.  program: a torch.export file, or None.  batch: windows per run.
    model: when loading, the bundle's graph for a backend that reads it, or None.  host_code: the user allows an engine
    that brings native code of its own, which runs as soon as it is loaded.
    timing_cache: a file that TensorRT keeps between builds, or None.
    runtime_cache: when loading, what `DeviceSession.runtime_cache` was when the engine first ran on such a device.
    log: called with (step, what happened) by builds that have something to say.
    """

    precision: str = "fp32"
    threads: int = 0
    program: Path | None = None
    batch: int = 1
    model: Path | None = None
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)
    host_code: bool = False
    timing_cache: Path | None = None
    runtime_cache: bytes = b""
    log: Log = lambda step, text: None


class Session(Protocol):
    """A loaded engine.  Not thread-safe: one session per thread."""

    def run(self, windows: Float32) -> Float32:
        """Logits of one batch of windows.

        windows: (N, 3, H, W) float32, normalised, C-contiguous.  Returns (N, K, h, w) float32; the array may be
        reused by the next call.  Of an engine of several outputs, which ends before its logits, they come as one flat
        array (see `packed`).  Raises DeployError when the shape is not the one the engine was built for.
        """


@dataclass(frozen=True)
class Tensor:
    """An engine's input or output.  dtype: ``fp32`` or ``fp16``."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def packed(sizes: Sequence[int]) -> tuple[list[int], int]:
    """How an engine of several outputs shows them as one flat array: where each begins, and elements in all.

    sizes: elements of each, in the order of their names.  Each begins at a multiple of `PACK` elements.
    """
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += -(-size // PACK) * PACK
    return offsets, total


def pack(outputs: Sequence[NDArray[Any]]) -> Float32:
    """An engine's outputs on the host as `packed` lays them out, in float32; of one alone, that one."""
    if len(outputs) == 1:
        one: Float32 = outputs[0]
        return one
    offsets, total = packed([output.size for output in outputs])
    flat = np.zeros(total, np.float32)
    for offset, output in zip(offsets, outputs, strict=True):
        flat[offset : offset + output.size] = output.reshape(-1)
    return flat


class DeviceSession(Session, Protocol):
    """An engine that reads and writes GPU memory in the process's primary context.

    output: of an engine of several outputs, all of one type, the flat array that `packed` makes of them.
    """

    @property
    def input(self) -> Tensor: ...

    @property
    def output(self) -> Tensor: ...

    @property
    def capturable(self) -> bool:
        """Whether `enqueue` may be recorded into a CUDA graph, once it has run outside of one."""

    @property
    def runtime_cache(self) -> bytes:
        """What the SDK compiled for this device when the engine ran; empty where it had no need to, or never does."""

    def enqueue(self, source: int, target: int, stream: int) -> None:
        """Start one run: from the input at address `source` to the output at `target`, in the order of `stream`.

        Addresses are of device memory, aligned to 256 bytes; stream is a cudaStream_t.  Does not wait.
        Raises DeployError when the SDK refuses.
        """

    def another(self) -> DeviceSession:
        """The same engine in an execution context of its own, which may be at work beside this one on another stream.

        Close it before this one.  Raises DeployError where the SDK has none, or there is no memory for it.
        """

    def close(self) -> None:
        """Free everything that is its own."""


@dataclass(frozen=True)
class Layer:
    """One layer as the SDK runs it, fusions included.  share: of the summed layer time, 0..1."""

    name: str
    type: str
    precision: str
    share: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Backend(Protocol):
    """One inference SDK; `engines.backends` has the list of them."""

    @property
    def name(self) -> str: ...

    on_gpu: bool = False  # its sessions are DeviceSessions
    from_program: bool = False  # compiled from config.program, not from the graph
    zero_points: bool = False  # takes INT8 activations whose zero point is not 0

    def unavailable(self) -> str | None:
        """None when this machine can use the backend, otherwise what is missing and how to get it."""

    def only_builds(self) -> str | None:
        """Why engines can be built here, but not run; None where they can be run, or neither."""
        return None

    def version(self) -> str:
        """SDK name and version, as it goes into the manifest."""

    def device(self) -> str:
        """Fingerprint of the device that an engine is tied to; equal strings may share an engine."""

    def supports(self, precision: str) -> str | None:
        """None when the precision can be built here, otherwise the reason why not."""

    def refuses_rest(self, rest: str) -> str | None:
        """None when an INT8 graph may compute everything else, and scale, in `rest`, otherwise the reason why not."""
        return None

    def remark(self, precision: str) -> str | None:
        """None when `precision` is computed here as its name says, otherwise what is different, in words."""

    def refuses(self, sdk: str, device: str, config: BuildConfig) -> str | None:
        """None when an engine built with `sdk` on `device` under `config` may be loaded here, otherwise why not."""
        for what, built, here in (("with", sdk, self.version()), ("on", device, self.device())):
            if built != here:
                return f"built {what} {built!r}, but this is {here!r}"
        return None

    def reads_graph(self, config: BuildConfig) -> bool:
        """Whether `load` takes anything from `config.model`."""
        return False

    def build(self, model: Path, config: BuildConfig) -> bytes:
        """Compile the ONNX file `model` (static shapes, one window; backends.onnx_bytes for more).

        Raises DeployError naming what was refused.
        """

    def load(self, blob: bytes, config: BuildConfig) -> AbstractContextManager[Session]:
        """Open an engine made by `build`.  Raises DeployError when the SDK refuses it."""

    def layers(self, blob: bytes, config: BuildConfig, window: Float32, runs: int = 5) -> list[Layer]:
        """What the engine's layers really run in on this device, with their share of the time.

        window: (1, 3, H, W) float32.  Raises DeployError when the SDK cannot tell.
        """


def check_windows(windows: Float32, shape: tuple[int, ...]) -> None:
    """Raises DeployError unless `windows` are float32 of `shape`, the one that an engine was built for."""
    if windows.shape != shape or windows.dtype != np.float32:
        raise DeployError(
            f"engine input: got {windows.shape} {windows.dtype}, expected {shape} float32; "
            "run with the tile size that the bundle was built with"
        )


def from_microseconds(rows: Iterable[tuple[str, str, str, float]]) -> list[Layer]:
    """(name, type, precision, microseconds) -> layers."""
    timed = list(rows)
    total = sum(row[3] for row in timed) or 1.0
    return [Layer(name, kind, precision, time / total) for name, kind, precision, time in timed]


def executed(layers: Sequence[Layer]) -> dict[str, float]:
    """Share of the layer time by precision, largest first: ``{"int8": 0.52, "bf16": 0.4, "fp32": 0.08}``."""
    shares: dict[str, float] = {}
    for layer in layers:
        shares[layer.precision] = shares.get(layer.precision, 0.0) + layer.share
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def table(layers: Sequence[Layer], precision: str) -> str:
    """The layers in order, then the share of time by type and precision, for a terminal."""
    lines = [f"{layer.precision:6}{100 * layer.share:6.2f} %  {layer.type:16}{layer.name}" for layer in layers]
    by_type: dict[tuple[str, str], float] = {}
    for layer in layers:
        key = (layer.type, layer.precision)
        by_type[key] = by_type.get(key, 0.0) + layer.share
    lines.append("")
    for (kind, type_precision), share in sorted(by_type.items(), key=lambda item: -item[1]):
        lines.append(f"{type_precision:6}{100 * share:6.2f} %  all {kind}")
    text = ", ".join(f"{name} {100 * share:.1f} %" for name, share in executed(layers).items())
    lines.append(f"executed (built as {precision}): {text} of the layer time")
    return "\n".join(lines)
