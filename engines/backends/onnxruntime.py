"""ONNX Runtime on the CPU: the reference and baseline for models that come as .onnx, as torch is for checkpoints.

The only file in this package that imports onnxruntime.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines.backends.reference import Reference
from engines.contract import BuildConfig, Float32, Layer, Session, check_windows, pack
from engines.errors import DeployError
from engines.guard.ledger import ledger
from engines.machine.interpreter import pip_install, version_of
from engines.machine.limits import cores

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # of a graph that is given as bytes


class OnnxRuntimeSession:
    def __init__(self, session: Any) -> None:
        self._session = session
        (entry,) = session.get_inputs()
        self._name = entry.name
        self._shape = tuple(entry.shape)
        self._type = np.float16 if entry.type == "tensor(float16)" else np.float32  # halves: made for a GPU
        self._outputs = sorted(output.name for output in session.get_outputs())

    def run(self, windows: Float32) -> Float32:
        check_windows(windows, self._shape)
        return pack(self._session.run(self._outputs, {self._name: windows.astype(self._type, copy=False)}))


class OnnxRuntimeBackend(Reference):
    name = "onnxruntime"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return f"the onnxruntime package is not installed; {pip_install('export')}"
        return None

    def version(self) -> str:
        return f"onnxruntime {version_of('onnxruntime').split('+')[0]}"

    def layers(self, blob: bytes, config: BuildConfig, window: Float32, runs: int = 5) -> list[Layer]:
        raise DeployError("backend onnxruntime: it is the fp32 reference and is not profiled; use --backend openvino")

    def reads_graph(self, config: BuildConfig) -> bool:
        return True  # the engine is the graph, and its weights may lie in a file of their own

    def build(self, model: Path, config: BuildConfig) -> bytes:
        self.require_one_window(config)
        # The graph itself: ONNX Runtime compiles when it loads.  Opened once, so that a build says what is refused.
        blob = model.read_bytes()
        _open(blob, replace(config, model=model))
        return blob

    @contextmanager
    def load(self, blob: bytes, config: BuildConfig) -> Iterator[Session]:
        session = OnnxRuntimeSession(_open(blob, config))
        with ledger.doing(f"{self.version()} ran the engine"):
            yield session


def _open(blob: bytes, config: BuildConfig) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.threads or cores()
    options.log_severity_level = 3
    if config.model is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(config.model.absolute().parent))
    state = ort.capi.onnxruntime_pybind11_state
    refusals = (state.Fail, state.NotImplemented, state.InvalidGraph, state.InvalidArgument, state.InvalidProtobuf)
    try:
        with ledger.doing(f"{backend.version()} loaded the network"):
            return ort.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise DeployError(f"onnxruntime: cannot load the graph: {' '.join(str(error).split())[:300]}") from error


def _onnxruntime() -> ModuleType:
    import onnxruntime

    module: ModuleType = onnxruntime
    return module


backend = OnnxRuntimeBackend()
