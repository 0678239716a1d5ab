"""TensorRT for RTX: engines compiled ahead of time, also on a machine without a GPU.  The only file that imports it.

Its documentation names consumer GPUs of x86-64 machines (compute capabilities 7.5 to 12.1 without 8.7 and 9.0): neither
Jetson boards nor Hopper.
"""

from __future__ import annotations

from typing import Any

from engines.backends.tensorrt.backend import TensorRTFamily
from engines.backends.tensorrt.sdk import Flavour
from engines.machine.interpreter import pip_install


class TensorRTRTXBackend(TensorRTFamily):
    flavour = Flavour("tensorrt_rtx", "TensorRT-RTX", pip_install("rtx", pinned=False), ahead=True)

    def sdk(self) -> Any:
        import tensorrt_rtx

        return tensorrt_rtx


backend = TensorRTRTXBackend()
