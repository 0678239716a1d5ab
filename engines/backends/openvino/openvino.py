"""OpenVINO on the CPU: the embedded default, x86-64 and ARM64.

The only file that imports openvino.  What a graph says is what runs: see types.py for how.  A build in a half
type is held against the plugin's own account (account.py): where that has an fp32 node of the graph in the
half type, the engine computes in fp32 whatever is not int8, and says so.
"""

from __future__ import annotations

import importlib.util
import io
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines.backends.onnx_bytes import file_with_batch
from engines.backends.openvino.account import half_unasked, layer_info
from engines.backends.openvino.signal_stack import signal_stack_kept
from engines.backends.openvino.types import computed_in, half_type, with_marks
from engines.contract import Backend, BuildConfig, Float32, Layer, Session, check_windows, from_microseconds, pack
from engines.errors import DeployError
from engines.guard.ledger import ledger
from engines.machine.interpreter import pip_install
from engines.machine.limits import quota


class OpenVINOSession:
    """One inference request.  The returned logits live in the request and are overwritten by the next call."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._shape = tuple(int(d) for d in compiled.input(0).shape)
        several = compiled.outputs if len(compiled.outputs) > 1 else ()
        self._order = sorted(range(len(several)), key=lambda index: str(several[index].get_any_name())) or [0]

    def run(self, windows: Float32) -> Float32:
        check_windows(windows, self._shape)
        result = self._request.infer([windows], share_inputs=True, share_outputs=True)
        return pack([result[index] for index in self._order])


class OpenVINOBackend(Backend):
    name = "openvino"
    zero_points = True

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return f"the openvino package is not installed; {pip_install('cpu')}"
        return None

    def version(self) -> str:
        return f"openvino {_openvino().__version__.split('-')[0]}"

    def device(self) -> str:
        # The blob holds no machine code (kernels are generated at load), but which kernels and which rounding
        # follow from the instruction sets, so those, not the model name of the CPU, are the fingerprint.
        capabilities = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return f"cpu {platform.machine()} {'+'.join(sorted(str(c) for c in capabilities))}"

    def supports(self, precision: str) -> str | None:
        if precision == "fp8":
            return "OpenVINO has no FP8 on a CPU; use --precision int8 or bf16"
        if precision != "bf16" or "BF16" in self._capabilities():
            return None
        return "this CPU has no BF16 arithmetic (AVX512_BF16, AMX or ARM BF16); use --precision fp32 or int8"

    def remark(self, precision: str) -> str | None:
        """What is not as `precision` suggests on this CPU, in words, or None."""
        if precision == "fp16" and "FP16" not in self._capabilities():
            return "weights and constants rounded to FP16, computed in FP32: this CPU has no FP16 arithmetic"
        if precision == "int8" and "INT8" not in self._capabilities():
            return "this CPU has no INT8 dot product; expect no gain"
        return None

    def build(self, model: Path, config: BuildConfig) -> bytes:
        ov = _openvino()
        try:
            with file_with_batch(model, config.batch) as source:  # bytes would lose the weights that lie beside it
                graph = _taking_float32(ov, ov.Core().read_model(source))
            hint = self._hint(half_type(graph))
            asked = computed_in(graph, hint)
            if hint != "f32" or config.precision not in ("fp32", "fp16"):
                graph = with_marks(ov, graph, hint)
            compiled = _compile(ov, graph, config, hint)
            unasked = half_unasked(compiled, asked) if hint != "f32" else []
            if unasked:
                text = f"OpenVINO computes {len(unasked)} layer(s) in {hint} that the graph has in fp32"
                config.log("warning", f"{text} (such as {unasked[0]}): all that is not int8 is computed in fp32")
                hint = "f32"
                compiled = _compile(ov, graph, config, hint)
        except RuntimeError as error:
            raise DeployError(f"openvino: cannot compile {model.name}: {_one_line(error)}") from error
        blob: bytes = compiled.export_model().getvalue()
        return _HEADER + hint.encode() + b"\n" + blob

    @contextmanager
    def load(self, blob: bytes, config: BuildConfig) -> Iterator[Session]:
        compiled = _import(blob, config)
        with ledger.doing(f"{self.version()} ran the engine"):
            yield OpenVINOSession(compiled)

    def layers(self, blob: bytes, config: BuildConfig, window: Float32, runs: int = 5) -> list[Layer]:
        """What the plugin made of the graph, in order of execution: mean times over `runs` runs, the first not
        counted.  The plugin's clock counts whole microseconds and reports 0 as not run: a layer quicker than that is
        listed one time and not the next.
        """
        compiled = _import(blob, config, {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        window = np.repeat(window[:1], int(compiled.input(0).shape[0]), axis=0)
        sums: dict[str, float] = {}
        for run in range(runs + 1):
            request.infer([window])
            for item in request.get_profiling_info() if run else ():
                if str(item.status).endswith("NOT_RUN") or str(item.status).endswith("OPTIMIZED_OUT"):
                    continue
                sums[item.node_name] = sums.get(item.node_name, 0.0) + item.real_time.total_seconds() * 1e6 / runs
        rows = []
        for op in compiled.get_runtime_model().get_ordered_ops():
            info = layer_info(op)
            kind = info.get("layerType", "")
            name = op.get_friendly_name()
            if name in sums and kind not in ("Input", "Const", "Output", ""):
                rows.append(
                    (
                        name,
                        kind,
                        _PRECISIONS.get(info["runtimePrecision"], info["runtimePrecision"]),
                        sums.get(name, 0.0),
                    )
                )
        return from_microseconds(rows)

    def _capabilities(self) -> list[str]:
        return [str(c) for c in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")]

    def _hint(self, half: str | None) -> str:
        """f16 is asked for only where it is native: elsewhere the plugin would take bf16, which is coarser."""
        if half == "bf16" and "BF16" not in self._capabilities():
            raise DeployError(
                "openvino: the graph computes in BF16, which this CPU does not have; build from the checkpoint with "
                "--precision fp32 or int8"
            )
        return half if half is not None and _CAPABILITY[half] in self._capabilities() else "f32"


_CAPABILITY = {"bf16": "BF16", "f16": "FP16"}
_HEADER = b"edgeseg openvino "  # then the precision hint, a newline, and OpenVINO's own blob
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


def _import(blob: bytes, config: BuildConfig, extra: dict[str, Any] | None = None) -> Any:
    # The blob holds a graph, not code: kernels are made when it is loaded, so the hint must be the one of the build.
    header, _, body = blob.partition(b"\n")
    if not header.startswith(_HEADER):
        raise DeployError("openvino: cannot load the engine: not one of this version; build it again")
    hint = header[len(_HEADER) :].decode("ascii", "replace")
    try:
        with signal_stack_kept(), ledger.doing(f"{backend.version()} loaded the engine"):
            properties = {**_properties(config, hint), **(extra or {})}
            return _openvino().Core().import_model(io.BytesIO(body), "CPU", properties)
    except RuntimeError as error:
        raise DeployError(f"openvino: cannot load the engine: {_one_line(error)}; build it again") from error


def _compile(ov: ModuleType, graph: Any, config: BuildConfig, hint: str) -> Any:
    with signal_stack_kept(), ledger.doing(f"{backend.version()} compiled the network"):
        return ov.Core().compile_model(graph, "CPU", _properties(config, hint))


@contextmanager
def observing(path: Path, names: Sequence[str], config: BuildConfig) -> Iterator[Callable[[Float32], list[Float32]]]:
    """Compile the ONNX file at `path`, whose outputs are `names`; yields a function from windows to all of them.

    Computes in float32.  The arrays live in the request and are overwritten by the next call.
    """
    ov = _openvino()
    try:
        compiled = _compile(ov, ov.Core().read_model(path), config, "f32")
    except RuntimeError as error:
        raise DeployError(
            f"openvino: cannot compile the graph with {len(names)} outputs: {_one_line(error)}"
        ) from error
    if len(compiled.outputs) != len(names):
        raise DeployError(f"openvino: got {len(compiled.outputs)} outputs, expected {len(names)}; report this model")
    request = compiled.create_infer_request()

    def run(windows: Float32) -> list[Float32]:
        result = request.infer([windows], share_inputs=True, share_outputs=True)
        return [result[index] for index in range(len(names))]

    with ledger.doing(f"{backend.version()} ran the network"):
        yield run


def _openvino() -> ModuleType:
    try:
        Path.home()
    except RuntimeError:  # a user without one, as in containers: there the import fails, for its telemetry asks
        os.environ["HOME"] = "/nonexistent"
    import openvino

    module: ModuleType = openvino
    return module


def _properties(config: BuildConfig, hint: str) -> dict[str, Any]:
    # Without the hint OpenVINO silently computes in bf16 on CPUs that have it.  How many threads to take it knows best:
    # of a hybrid CPU not the slow cores, of two threads on one core one.  They are not pinned, since threads of ours
    # that read and write run beside them, and a pinned one on a busy core holds up all others of a layer.
    properties = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
    threads = config.threads or quota()
    return properties if threads is None else {**properties, "INFERENCE_NUM_THREADS": threads}


def _taking_float32(ov: ModuleType, graph: Any) -> Any:
    """A graph that was made for a GPU may take halves: here it rounds to them itself."""
    if graph.input(0).get_element_type() == ov.Type.f32:
        return graph
    steps = ov.preprocess.PrePostProcessor(graph)
    steps.input(0).tensor().set_element_type(ov.Type.f32)
    return steps.build()


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[-300:]


backend = OpenVINOBackend()
