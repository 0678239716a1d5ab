"""Small changes to a graph of OpenVINO.

Gets the openvino module as an argument: only the backend imports it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

HELD = "/held"


def hold(ov: ModuleType, port: Any) -> None:
    """Put Maximum(x, lowest), which changes no value, before the input `port`: what is behind it stays behind it."""
    source, lowest = port.get_source_output(), ov.opset13.constant(np.float32(np.finfo(np.float32).min))
    held = ov.opset13.maximum(source, lowest, name=port.get_node().get_friendly_name() + HELD)
    port.replace_source_output(held.output(0))


def replace(old: Any, new: Any) -> None:
    """Let all that reads the output `old` read `new`."""
    for target in old.get_target_inputs():
        target.replace_source_output(new)
