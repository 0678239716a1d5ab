"""OpenVINO on the CPU: the embedded default, x86-64 and ARM64.

The only file that imports openvino.
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

from engines.base import BuildConfig, Float32, Session
from engines.errors import DeployError


class OpenVINOSession:
    """One inference request.  The returned logits live in the request and are overwritten by the next call."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._shape = tuple(int(d) for d in compiled.input(0).shape)

    def run(self, windows: Float32) -> Float32:
        if windows.shape != self._shape or windows.dtype != np.float32:
            raise DeployError(
                f"engine input: got {windows.shape} {windows.dtype}, expected {self._shape} float32; "
                "run with the tile size that the bundle was built with"
            )
        result = self._request.infer([windows], share_inputs=True, share_outputs=True)
        logits: Float32 = result[0]
        return logits


class OpenVINOBackend:
    name = "openvino"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "the openvino package is not installed; pip install -c constraints.txt -e '.[cpu]'"
        return None

    def version(self) -> str:
        return f"openvino {_openvino().__version__.split('-')[0]}"

    def device(self) -> str:
        # The blob holds no machine code (kernels are generated at load), but which kernels and which rounding
        # follow from the instruction sets, so those, not the model name of the CPU, are the fingerprint.
        capabilities = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return f"cpu {platform.machine()} {'+'.join(sorted(str(c) for c in capabilities))}"

    def supports(self, precision: str) -> str | None:
        return None if precision == "fp32" else f"precision {precision} is not supported yet; use --precision fp32"

    def build(self, model: Path, config: BuildConfig) -> bytes:
        ov = _openvino()
        try:
            compiled = ov.Core().compile_model(model, "CPU", _properties(config))
        except RuntimeError as error:
            raise DeployError(f"openvino: cannot compile {model.name}: {_one_line(error)}") from error
        blob: bytes = compiled.export_model().getvalue()
        return blob

    @contextmanager
    def load(self, blob: bytes, config: BuildConfig) -> Iterator[Session]:
        ov = _openvino()
        try:
            compiled = ov.Core().import_model(io.BytesIO(blob), "CPU", _properties(config))
        except RuntimeError as error:
            raise DeployError(f"openvino: cannot load the engine: {_one_line(error)}; build it again") from error
        yield OpenVINOSession(compiled)


@contextmanager
def observing(model: bytes, names: Sequence[str], config: BuildConfig) -> Iterator[Callable[[Float32], list[Float32]]]:
    """Compile a serialised ONNX `model` whose outputs are `names`; yields a function from windows to all of them.

    Computes in float32.  The arrays live in the request and are overwritten by the next call.
    """
    ov = _openvino()
    try:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", _properties(config))
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

    yield run


def _openvino() -> ModuleType:
    import openvino

    module: ModuleType = openvino
    return module


def _properties(config: BuildConfig) -> dict[str, Any]:
    # Without the hint OpenVINO silently computes in bf16 on CPUs that have it.
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": config.threads or len(os.sched_getaffinity(0)),
    }


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[-300:]


backend = OpenVINOBackend()
