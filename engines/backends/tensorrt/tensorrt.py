"""TensorRT 8.6 to 11 on NVIDIA GPUs, Jetson boards included.  The only file that imports tensorrt."""

from __future__ import annotations

from typing import Any

from engines.backends.tensorrt.backend import TensorRTFamily
from engines.backends.tensorrt.sdk import Flavour
from engines.machine.interpreter import pip_install


class TensorRTBackend(TensorRTFamily):
    flavour = Flavour("tensorrt", "TensorRT", pip_install("tensorrt", pinned=False))

    def sdk(self) -> Any:
        import tensorrt

        return tensorrt


backend = TensorRTBackend()
