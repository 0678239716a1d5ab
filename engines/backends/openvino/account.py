"""The plugin's own account of a compiled model: what its layers are, what they run in, which nodes they came from."""

from __future__ import annotations

from typing import Any

HALVES = ("bf16", "f16")
_GIVEN = ("Const", "Input", "Reorder")
_MOVES = ("Reorder", "Transpose", "Reshape", "Convert", "Concatenation", "Split", "Gather", "StridedSlice")
_FUSED = ("Subgraph", "Eltwise")  # they compute in float32 whatever they read and write


def layer_info(op: Any) -> dict[str, str]:
    """Of a node of the runtime model; ``layerType``, ``runtimePrecision`` and ``originalLayersNames`` among others."""
    return {key: str(getattr(value, "value", value)) for key, value in op.get_rt_info().items()}


def half_unasked(compiled: Any, asked: frozenset[str]) -> list[str]:
    """Layers that run in a half type though none of the nodes that they came from is in `asked`, by name.

    Moving a value that came in half already is no computation in it.
    """
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = layer_info(op)
        if info.get("runtimePrecision") not in HALVES or info["layerType"] in _GIVEN or asked & _names(op, info):
            continue
        # With f16 they are given f32 between two converts, if so asked; with bf16 they write what they are told to.
        rounds = info["outputPrecisions"] == "bf16" if info["layerType"] in _FUSED else not _moves_half(op, asked)
        if rounds:
            found.append(op.get_friendly_name())
    return found


def _names(op: Any, info: dict[str, str]) -> set[str]:
    return {op.get_friendly_name(), *info.get("originalLayersNames", "").split(",")}


def _moves_half(op: Any, asked: frozenset[str]) -> bool:
    """Whether `op` only moves a constant, the image, or what a layer asked to be half has made."""
    while (info := layer_info(op))["layerType"] in _MOVES and not asked & _names(op, info):
        op = op.input_value(0).get_node()
    return info["layerType"] in _GIVEN or bool(asked & _names(op, info))
