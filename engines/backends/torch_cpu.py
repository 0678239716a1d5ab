"""PyTorch, eager, from an exported program: the reference that every other engine is compared with.

With torch_gpu.py the only file in this package that imports torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.backends.reference import Reference
from engines.contract import BuildConfig, Float32, Layer, Session, check_windows
from engines.errors import DeployError
from engines.machine.interpreter import pip_install


class TorchSession:
    def __init__(self, module: Any, shape: tuple[int, ...]) -> None:
        self._module = module
        self._shape = shape

    def run(self, windows: Float32) -> Float32:
        import torch

        check_windows(windows, self._shape)
        with torch.inference_mode():
            logits: Float32 = self._module(torch.from_numpy(windows)).numpy()
        return logits


class TorchBackend(Reference):
    name = "torch"
    from_program = True

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("torch") is None:
            return f"the torch package is not installed; {pip_install('export')}"
        return None

    def version(self) -> str:
        return f"torch {importlib.metadata.version('torch').split('+')[0]}"

    def layers(self, blob: bytes, config: BuildConfig, window: Float32, runs: int = 5) -> list[Layer]:
        raise DeployError(
            "backend torch: it runs eagerly in fp32 and keeps no account of layers; use --backend openvino"
        )

    def build(self, model: Path, config: BuildConfig) -> bytes:
        self.require_one_window(config)
        return program_bytes(self.name, model, config)

    @contextmanager
    def load(self, blob: bytes, config: BuildConfig) -> Iterator[Session]:
        import torch

        before = torch.get_num_threads()
        if config.threads:
            torch.set_num_threads(config.threads)
        program = load_program(blob)
        (example,), _ = program.example_inputs
        try:
            yield TorchSession(program.module(), tuple(example.shape))
        finally:
            torch.set_num_threads(before)


def program_bytes(name: str, model: Path, config: BuildConfig) -> bytes:
    """The exported program as it is, which is what backend `name` keeps in a bundle.  Raises DeployError."""
    if config.program is None:
        raise DeployError(
            f"backend {name}: {model.name} has no PyTorch module behind it; use --backend openvino, "
            "or build from the checkpoint"
        )
    return config.program.read_bytes()


def load_program(blob: bytes) -> Any:
    """The torch.export.ExportedProgram in `blob`.  Raises DeployError."""
    import torch

    try:
        return torch.export.load(io.BytesIO(blob))
    except (RuntimeError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise DeployError(f"torch: cannot load the program: {error}; build the bundle again") from error


backend = TorchBackend()
