"""What an engine's layers are, from TensorRT's inspector, joined with what each took, from its profiler."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.backends.tensorrt.sdk import member
from engines.backends.tensorrt.session import TensorRTSession
from engines.contract import Float32, Layer, from_microseconds
from engines.errors import DeployError

# By how 8.6 (sentences such as "Row major linear FP16 format") and 10 on ("Half") call them; the narrowest first.
_NAMES = (
    ("int4", re.compile(r"\bint4\b", re.I)),
    ("fp4", re.compile(r"\b(fp4|float4)", re.I)),
    ("int8", re.compile(r"\bint8\b", re.I)),
    ("fp8", re.compile(r"\b(fp8|float8)", re.I)),
    ("fp16", re.compile(r"\b(half|fp16|float16)\b", re.I)),
    ("bf16", re.compile(r"\b(bf16|bfloat16)\b", re.I)),
    ("fp32", re.compile(r"\b(float|fp32|float32)\b", re.I)),
    ("int64", re.compile(r"\bint64\b", re.I)),
    ("int32", re.compile(r"\bint32\b", re.I)),
    ("uint8", re.compile(r"\buint8\b", re.I)),
    ("bool", re.compile(r"\bbool\b", re.I)),
)
_TYPE_FIELDS = ("Datatype", "DataType", "Format/Datatype", "Type", "Format")  # those that name nothing else first


def measure(sdk: Any, session: TensorRTSession, window: Float32, runs: int) -> list[Layer]:
    """In order of execution, mean times over `runs` runs, the first not counted.  window: (1, 3, H, W)."""
    windows = np.repeat(window[:1], session.input.shape[0], axis=0)
    times: dict[str, float] = {}

    class Profiler(sdk.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            sdk.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name] = times.get(layer_name, 0.0) + 1e3 * ms / runs

    session.run(windows)
    profiler = Profiler()
    session.context.profiler = profiler
    for _ in range(runs):
        session.run(windows)
    return join(describe(sdk, session), times)


def describe(sdk: Any, session: TensorRTSession) -> list[Mapping[str, Any]]:
    """TensorRT's own account of each layer.  Raises DeployError where the engine was built without it."""
    inspector = session.engine.create_engine_inspector()
    inspector.execution_context = session.context
    text = inspector.get_engine_information(member(sdk, "LayerInformationFormat", "JSON"))
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise DeployError(
            f"inspect: TensorRT's account of the engine cannot be read ({error!r}); report this"
        ) from error
    if not all(isinstance(layer, dict) for layer in layers):  # names alone
        raise DeployError("inspect: the engine was built without an account of its layers; build the bundle again")
    return list(layers)


def join(layers: list[Mapping[str, Any]], times: Mapping[str, float]) -> list[Layer]:
    """times: microseconds by name.  Layers that TensorRT times and does not describe come last."""
    rows = []
    known = set()
    for layer in layers:
        name = str(layer.get("Name", ""))
        known.add(name)
        if name in times:
            rows.append((name, str(layer.get("LayerType", "?")), precision(layer), times[name]))
    rows.extend((name, "?", "?", time) for name, time in times.items() if name not in known)
    return from_microseconds(rows)


def precision(layer: Mapping[str, Any]) -> str:
    """What a layer computes in: the narrowest type that goes into it.

    Not what comes out: a LayerNorm that hands on INT8 was computed in the type of what it took.
    """
    taken = [*_tensors(layer, "Inputs"), *_tensors(layer, "Weights")] or _tensors(layer, "Outputs")
    found = {type_of(tensor) for tensor in taken}
    return next((name for name, _ in _NAMES if name in found), "?")


def type_of(tensor: Mapping[str, Any]) -> str:
    """Of one tensor of the account, by its name here; "?" where nothing says it."""
    words = [str(tensor[field]) for field in _TYPE_FIELDS if field in tensor]
    return next((name for word in words for name, pattern in _NAMES if pattern.search(word)), "?")


def _tensors(layer: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of tensors; weights are a single one, or an empty one of count 0."""
    found = layer.get(key, [])
    found = [found] if isinstance(found, dict) else found
    return [tensor for tensor in found if isinstance(tensor, dict) and tensor.get("Count", 1)]
