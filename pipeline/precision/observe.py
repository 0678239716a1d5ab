"""Run windows through a graph and look at tensors inside it, holding a bounded part of them at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from calib.ranges.collector import Collector, Observed
from calib.ranges.ranges import TensorRange
from calib.ranges.windows import CalibrationSet
from engines.backends.openvino import observing
from engines.contract import BuildConfig, Float32
from engines.errors import DeployError
from engines.model_spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph

BUDGET = 10**9  # bytes of observed tensors in one pass
SAVE_EVERY_S = 10.0
Shapes = Mapping[str, tuple[int, ...] | None]

# Operators whose output holds the values of their first input in another order or shape: same range.
_MOVES = frozenset({"Reshape", "Transpose", "Identity", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass
class Effort:
    """Seconds spent in the network and in statistics; windows run, counting each pass; passes over the windows."""

    network: float = 0.0
    statistics: float = 0.0
    windows: int = 0
    passes: int = 0


def quantizable_tensors(graph: OnnxGraph, *, every: bool = False) -> list[Observed]:
    """The float32 activations that enter a Linear or Conv layer with constant weights, in graph order.

    every: also all other float32 activations, for low, high and rms alone.  Of those that only reorder another
    tensor's values the other stands for them: see `with_moved`.
    """
    shapes = float_shapes(graph.model)
    active = [name for name in _activations(graph.model) if name in shapes]
    known = set(active)
    axes: dict[str, int | None] = {}
    for node in graph.model.graph.node:
        name, axis = _layer_input(node, known)
        if name:
            axes[name] = axis if axes.get(name, axis) == axis else None
    moved = moved_tensors(graph.model)
    return [
        Observed(name, axes.get(name), histogram=name in axes)
        for name in active
        if name in axes or (every and moved.get(name) not in known)
    ]


def with_moved(graph: OnnxGraph, tensors: Mapping[str, TensorRange]) -> dict[str, TensorRange]:
    """`tensors` with the ranges of those that only reorder their values; amax is then the largest |x| that was seen."""
    result = dict(tensors)
    for name, origin in moved_tensors(graph.model).items():
        if origin in result and name not in result:
            seen = result[origin]
            amax = max(-seen.low, seen.high) or seen.amax
            result[name] = replace(seen, amax=amax, channel_amax=None, channel_mean=None)
    return result


def collect(
    graph: OnnxGraph,
    chosen: CalibrationSet,
    spec: ModelSpec,
    tiling: Tiling,
    observed: Sequence[Observed],
    *,
    state: Path | None = None,
    budget: int = BUDGET,
    threads: int = 0,
    save_every_s: float = SAVE_EVERY_S,
    log: Callable[[str, str], None] = lambda step, text: None,
    effort: Effort | None = None,
) -> Collector:
    """Statistics of `observed` over all windows of `chosen`, computed by OpenVINO in float32.

    The tensors are split, in graph order, into groups of at most `budget` bytes (or one tensor), and all windows are
    run once for each group.  state: a file that is kept while this runs, from which a later call with the same
    arguments continues, ending with the same bits.  Raises DeployError on NaN or infinite activations.
    """
    shapes = float_shapes(graph.model)
    unknown = [item.name for item in observed if item.name not in shapes]
    if unknown or not observed:
        raise DeployError(f"calibration: got tensors {unknown[:3]}, expected float32 tensors of the graph")
    groups = split(observed, shapes, budget)
    identity = _identity(graph, chosen, spec, tiling)
    collector = Collector(observed, identity, len(groups))
    if state is not None and state.exists():
        reason = collector.resume(state)
        done = f"continued after {sum(collector.done)} of {len(groups) * len(chosen.places)} window runs"
        log("resume", f"{state}: {done if reason is None else f'not used, {reason}; starting over'}")
    effort = effort or Effort()
    effort.passes = len(groups)
    total = len(groups) * len(chosen.places)
    try:
        with tqdm(total=total, initial=sum(collector.done), unit="window", disable=None, leave=False) as bar:
            saver = _Saver(collector, state, save_every_s)
            for index, group in enumerate(groups):
                start = collector.done[index]
                if start < len(chosen.places):
                    windows = chosen.inputs(spec, tiling, start)
                    for _ in _run_group(graph, group, shapes, windows, collector, threads, effort):
                        collector.done[index] += 1
                        bar.update()
                        saver.tick()
    except KeyboardInterrupt:
        if state is not None and state.exists():
            log("interrupted", f"give the same command again to continue from {state}")
        raise
    except DeployError:
        if state is not None:
            state.unlink(missing_ok=True)
        raise
    if state is not None:
        state.unlink(missing_ok=True)
    return collector


def split(observed: Sequence[Observed], shapes: Shapes, budget: int) -> list[list[Observed]]:
    """Consecutive groups of at most `budget` bytes; a tensor that is larger, or of unknown size, goes alone."""
    groups: list[list[Observed]] = []
    held = math.inf
    for item in observed:
        shape = shapes[item.name]
        size = budget if shape is None else 4 * math.prod(shape)
        if held + size > budget:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += size
    return groups


def _run_group(
    graph: OnnxGraph,
    group: Sequence[Observed],
    shapes: Shapes,
    windows: Iterator[tuple[Any, Float32]],
    collector: Collector,
    threads: int,
    effort: Effort,
) -> Iterator[None]:
    """Yields after each window.  The compiled graph and its outputs live no longer than this call."""
    image = image_input(graph.model)
    names = [item.name for item in group if item.name != image]
    model = with_outputs(graph.model, names, shapes) if names else b""
    with ExitStack() as stack:
        run = stack.enter_context(observing(model, names, BuildConfig(threads=threads))) if names else _nothing
        del model
        for place, window in windows:
            begin = time.perf_counter()
            tensors = dict(zip(names, run(window), strict=True))
            ran = time.perf_counter()
            if any(item.name == image for item in group):
                tensors = {image: window, **tensors}
            collector.update(tensors, str(place.image))
            effort.network += ran - begin
            effort.statistics += time.perf_counter() - ran
            effort.windows += 1
            yield


def _nothing(window: Float32) -> list[Float32]:
    return []


class _Saver:
    """Saves the state, when there is a file for it, after a window that ends later than `every_s` after the last."""

    def __init__(self, collector: Collector, path: Path | None, every_s: float) -> None:
        self._collector, self._path, self._every_s = collector, path, every_s
        self._last = time.monotonic()

    def tick(self) -> None:
        if self._path is not None and time.monotonic() - self._last >= self._every_s:
            self._collector.save(self._path)
            self._last = time.monotonic()


def _identity(graph: OnnxGraph, chosen: CalibrationSet, spec: ModelSpec, tiling: Tiling) -> dict[str, Any]:
    rank = {path: index for index, path in enumerate(chosen.paths)}
    return {
        "graph": graph_sha256(graph.model),
        "dataset": chosen.sha256,
        "seed": chosen.seed,
        "places": [[rank[place.image], place.top, place.left] for place in chosen.places],
        "input": [spec.mean, spec.std, spec.channel_order, tiling.padding],
    }


def image_input(model: onnx.ModelProto) -> str:
    constants = {weight.name for weight in model.graph.initializer}
    names: list[str] = [value.name for value in model.graph.input if value.name not in constants]
    return names[0]


def _activations(model: onnx.ModelProto) -> list[str]:
    """Every tensor that depends on the image, in graph order."""
    found = {image_input(model): None}
    for node in model.graph.node:
        if any(name in found for name in node.input):
            found |= {name: None for name in node.output if name}
    return list(found)


def float_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...] | None]:
    """The shapes of all float32 tensors but the weights; None where inference does not know it."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes: dict[str, tuple[int, ...] | None] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            dims = value.type.tensor_type.shape.dim
            known = value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
            shapes[value.name] = tuple(dim.dim_value for dim in dims) if known else None
    return shapes


def _layer_input(node: onnx.NodeProto, active: Collection[str]) -> tuple[str, int | None]:
    """The activation that a Linear or Conv `node` multiplies with constants, and its channels' axis from the end."""
    if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
        return "", None
    first, second = node.input[0], node.input[1]
    if (first in active) == (second in active):  # attention, or a product of constants
        return "", None
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = next((len(item.ints) for item in node.attribute if item.name == "kernel_shape"), 2)
        return (first, -1 - kernel) if first in active else ("", None)
    flags = {item.name: item.i for item in node.attribute}
    if first in active:
        return first, -2 if flags.get("transA") else -1
    return second, -1 if flags.get("transB") else -2


def moved_tensors(model: onnx.ModelProto) -> dict[str, str]:
    """Each tensor that only reorders the values of another -> the first that holds them."""
    origins: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in _MOVES:
            origins[node.output[0]] = origins.get(node.input[0], node.input[0])
    return origins


def with_outputs(model: onnx.ModelProto, names: Sequence[str], shapes: Shapes) -> bytes:
    """The model with `names` as its outputs, serialised; what they do not need, the engine leaves out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    float32 = onnx.TensorProto.FLOAT
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, float32, shapes[name]) for name in names)
    data: bytes = copy.SerializeToString()
    return data
