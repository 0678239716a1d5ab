"""Which names TensorRT has, release by release: what its own bindings show (tests/engines/tensorrt_api)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECORDED = {
    "8.6.2": "8.6.1",
    "10.3.0": "10.3.0",
    "10.16.2": "10.16.1.11",
    "11.4.1": "11.4.0.106",
}  # closest of the minor


@dataclass(frozen=True)
class Shape:
    """network, flags, types, hardware: enums.  config, layer: properties that can be set.  modern: has a monitor."""

    network: dict[str, int]
    flags: dict[str, int]
    types: dict[str, int]
    hardware: dict[str, int]
    config: tuple[str, ...]
    layer: tuple[str, ...]
    modern: bool


def _shape(recorded: str) -> Shape:
    api = json.loads((Path(__file__).parent / "tensorrt_api" / f"{recorded}.json").read_text())
    enums, classes = api["enums"], api["classes"]
    writable = [
        tuple(name for name, shape in classes[cls].items() if shape == ["read", "write"])
        for cls in ("IBuilderConfig", "ILayer")
    ]
    return Shape(
        enums["NetworkDefinitionCreationFlag"], enums["BuilderFlag"], enums["DataType"],
        enums["HardwareCompatibilityLevel"], writable[0], writable[1], "IProgressMonitor" in classes,
    )  # fmt: skip


SHAPES = {version: _shape(recorded) for version, recorded in RECORDED.items()}


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
