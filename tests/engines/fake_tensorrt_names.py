"""Which names TensorRT has, release by release, as far as the adapter could touch them.

Enum values are renumbered between releases as the real ones are (NVIDIA/TensorRT, include/ at tags 8.6.1, v10.3.0 and
main).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

_FLAGS = ("DEBUG", "GPU_FALLBACK", "REFIT", "TF32", "DIRECT_IO", "VERSION_COMPATIBLE")
_WEAK = ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS")
_STRIP = ("STRIP_PLAN", "REFIT_IDENTICAL")
_TYPES = ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8")
_CONFIG = (
    "builder_optimization_level", "max_aux_streams", "hardware_compatibility_level", "profiling_verbosity", "DLA_core",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    network: dict[str, int]
    flags: tuple[str, ...]
    types: tuple[str, ...] = (*_TYPES, "BF16", "INT64")
    hardware: tuple[str, ...] = ("NONE", "AMPERE_PLUS")
    config: tuple[str, ...] = (*_CONFIG, "progress_monitor")
    layer: tuple[str, ...] = ("precision",)
    modern: bool = True  # IProgressMonitor, OnnxParserRefitter, names in parser errors


SHAPES = {
    "8.6.2": Shape(
        {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1}, (*_WEAK, *_FLAGS), _TYPES, config=_CONFIG, modern=False
    ),
    "10.3.0": Shape({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, (*_FLAGS, *_WEAK, "BF16", *_STRIP)),
    "10.16.2": Shape(
        {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, (*_FLAGS, *_STRIP, *_WEAK, "BF16"),
        hardware=("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    ),
    "11.4.1": Shape(
        {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1}, (*_STRIP, *_FLAGS), layer=(),
        hardware=("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    ),
}  # fmt: skip


class Member:
    def __init__(self, enum: str, name: str, value: int) -> None:
        self._text, self._value = f"{enum}.{name}", value

    def __int__(self) -> int:
        return self._value

    def __str__(self) -> str:
        return self._text


def enum_of(name: str, members: Any) -> Any:
    numbered = members if isinstance(members, dict) else {member: i for i, member in enumerate(members)}
    return SimpleNamespace(**{key: Member(name, key, value) for key, value in numbered.items()})
