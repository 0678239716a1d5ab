"""From an ONNX file to TensorRT's plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends.tensorrt.messages import build_error, errors_of, listening, logger_of, no_kernels, warnings_of
from engines.backends.tensorrt.network import ParsedNetwork, keep_types
from engines.backends.tensorrt.progress import Progress, make_monitor, run_cancellable
from engines.backends.tensorrt.sdk import HARDWARE, Flavour, member, strongly_typed
from engines.backends.tensorrt.timing_cache import TimingCache
from engines.contract import BuildConfig, Log, TensorRTOptions
from engines.errors import DeployError

MIB = 2**20
_WARNINGS = 3  # shown


@dataclass(frozen=True)
class Room:
    """Memory of the GPU to build on.  free: bytes.  integrated: shared with the CPU."""

    free: int
    integrated: bool


def build_plan(
    sdk: Any, flavour: Flavour, model: Path, config: BuildConfig, room: Room | None, targets: Sequence[str],
    cache: TimingCache | None, listener: Callable[[str], None] | None = None,
) -> bytes:  # fmt: skip
    """room: None where there is no GPU.  targets: see Flavour.  cache: None keeps no measurements.  listener: is given
    all that the builder says of this build, verbose messages too.

    The options have been checked.  Raises DeployError naming the node at fault, KeyboardInterrupt when cancelled.
    """
    options, title = config.tensorrt, f"{flavour.title} {sdk.__version__}"
    logger = logger_of(sdk)
    logger.messages.clear()
    builder = make_builder(sdk, title, logger)
    typed = strongly_typed(sdk)
    flagless = typed or member(sdk, "BuilderFlag", "FP16") is None
    parsed = ParsedNetwork(
        sdk, title=title, builder=builder, logger=logger, model=model, typed=flagless, batch=config.batch
    )
    settings = builder.create_builder_config()
    _set_flags(sdk, settings, options, flavour)
    if not typed:
        told = keep_types(sdk, parsed, settings)
        config.log(
            "types", ", ".join(f"{count} {name}" if count > 1 else name for name, count in told.items()) or "FP32"
        )
    workspace = _set_limits(sdk, settings, options=options, room=room, log=config.log)
    if targets:
        settings.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        if not settings.set_compute_capability(getattr(sdk.ComputeCapability, name), index):
            raise build_error(title, logger, None)
    if cache is not None:
        cache.attach(settings)

    def build() -> Any:
        with nullcontext() if listener is None else listening(logger, listener):
            return builder.build_serialized_network(parsed.network, settings)

    plan = _run(sdk, build, settings, config.log)
    if plan is None:
        raise build_error(title, logger, workspace)
    for text in warnings_of(logger)[:_WARNINGS]:
        config.log("warning", text)
    if cache is not None:
        cache.store(settings)
    return bytes(memoryview(plan))


def workspace_limit(options: TensorRTOptions, room: Room | None) -> tuple[int | None, str]:
    """Bytes that tactics may use, and why; None leaves it to TensorRT.

    TensorRT's own default is all of the memory.  On a board that is what the desktop, the page cache and this process
    live in, and builds there end with the kernel killing something.
    """
    if options.workspace is not None:
        return options.workspace, "as asked"
    if room is None:
        return None, ""
    free = f"{room.free / MIB:.0f} MiB free"
    if room.integrated:
        return max(room.free // 2, 64 * MIB), f"half of {free}: the CPU lives in the same memory"
    return max(
        room.free - max(room.free // 10, 1024 * MIB), room.free // 2
    ), f"of {free}, the rest for weights and others"


def make_builder(sdk: Any, title: str, logger: Any) -> Any:
    """Raises DeployError where the SDK does not start."""
    try:
        return sdk.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11's answer to a constructor that returned nothing
        reason = errors_of(logger) or [str(error)]
        plain = DeployError(f"{title}: does not start: {reason[-1]}; look at nvidia-smi, and run doctor")
        raise no_kernels(title, reason) or plain from error


def _set_flags(sdk: Any, settings: Any, options: TensorRTOptions, flavour: Flavour) -> None:
    def raise_flag(name: str) -> None:
        flag = member(sdk, "BuilderFlag", name)
        if flag is not None:
            settings.set_flag(flag)

    tf32 = member(sdk, "BuilderFlag", "TF32")
    if tf32 is not None:
        settings.clear_flag(tf32)  # on by default: it would compute what the graph calls FP32 with 10 bits of mantissa
    if flavour.ahead:
        raise_flag("REQUIRE_USER_ALLOCATION")  # which recording a CUDA graph needs, say the notes of release 1.2
    if options.version_compatible:
        raise_flag("VERSION_COMPATIBLE")
    if options.strip_weights:
        raise_flag("STRIP_PLAN")
        raise_flag("REFIT_IDENTICAL")  # the same weights come back, so that tactics need not bear others
    if options.hardware != "exact" and not flavour.ahead:
        settings.hardware_compatibility_level = member(sdk, "HardwareCompatibilityLevel", HARDWARE[options.hardware])
    settings.profiling_verbosity = sdk.ProfilingVerbosity.DETAILED  # `inspect --layers` reads it; it costs no time
    if options.level is not None:
        settings.builder_optimization_level = options.level
    if options.aux_streams is not None:
        settings.max_aux_streams = options.aux_streams


def _set_limits(sdk: Any, settings: Any, options: TensorRTOptions, room: Room | None, log: Log) -> int | None:
    limit, why = workspace_limit(options, room)
    if limit is not None:
        settings.set_memory_pool_limit(sdk.MemoryPoolType.WORKSPACE, limit)
        log("workspace", f"{limit / MIB:.0f} MiB, {why}")
    return limit


def _run(sdk: Any, build: Callable[[], Any], settings: Any, log: Log) -> Any:
    with Progress() as progress:
        monitor = make_monitor(sdk, progress)
        if monitor is not None:
            settings.progress_monitor = monitor
        else:
            log("build", "this TensorRT tells no progress, and Ctrl-C ends it only when it is done")
        return run_cancellable(build, progress)
