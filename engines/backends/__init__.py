"""The inference SDKs, one file each, and which of them this machine takes."""

from __future__ import annotations

import importlib

from engines.contract import Backend
from engines.errors import DeployError

# Where the object of each lies, in order of preference for `--backend auto`, which never chooses a reference by itself.
_OBJECTS = {
    "tensorrt": "tensorrt.tensorrt:backend",
    "tensorrt_rtx": "tensorrt.tensorrt_rtx:backend",
    "openvino": "openvino.openvino:backend",
    "torch": "torch_cpu:backend",
    "onnxruntime": "onnxruntime:backend",
    "torch_cuda": "torch_gpu:eager",
    "torch_compile": "torch_gpu:compiled",
}
BACKENDS = tuple(_OBJECTS)
# What checkpoints and ready .onnx files are compared with, and on a GPU what engines have to beat.
REFERENCES = ("torch", "onnxruntime", "torch_cuda", "torch_compile")


def get_backend(name: str) -> Backend:
    """The backend called `name`.  Its SDK is imported on first use, not here."""
    if name not in BACKENDS:
        raise DeployError(f"backend: got {name!r}, expected one of {', '.join(BACKENDS)}, or auto")
    module, _, attribute = _OBJECTS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(f"engines.backends.{module}"), attribute)
    return backend


def choose_backend(name: str, precision: str, runs: bool = True) -> tuple[Backend, str]:
    """Resolve `name`, which may be ``auto``.  Returns the backend and one sentence that says why it was chosen.

    runs: whether engines must run here, too; where not, one that is asked for by name need only build.
    """
    if name != "auto":
        backend = get_backend(name)
        builds = None if runs else backend.only_builds()
        reason = (builds is None and backend.unavailable()) or backend.supports(precision)
        if reason:
            raise DeployError(f"backend {name}: {reason}")
        return backend, f"{name}, as asked{f', to be verified where it runs: {builds}' if builds else ''}"
    refused = []
    for candidate in BACKENDS:
        if candidate in REFERENCES:
            continue
        backend = get_backend(candidate)
        reason = backend.unavailable() or backend.supports(precision)
        if reason is None:
            return backend, f"{candidate}, the fastest one that this machine can run"
        refused.append(f"{candidate}: {reason}")
    raise DeployError("backend auto: none can run here; " + "; ".join(refused))
