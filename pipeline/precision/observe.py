"""Run windows through a graph and look at tensors inside it, holding a bounded part of them at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from tqdm import tqdm

from calib.ranges.collector import Collector, Observed
from calib.ranges.windows import CalibrationSet
from engines.backends.openvino.openvino import observing
from engines.contract import BuildConfig, Float32, Log
from engines.errors import DeployError
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import stored
from pipeline.graph.surgery import REORDERS, cut, image, integer, integers, is_float, shape

BUDGET = 10**9  # bytes of observed tensors in one pass
SAVE_EVERY_S = 10.0
Shapes = Mapping[str, tuple[int, ...] | None]


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
    tensor's values the other stands for them: see `moved_tensors`.
    """
    known = {value: None for value in _activations(graph.model) if is_float(value)}
    active = [str(value.name) for value in known]
    axes: dict[str, int | None] = {}
    for node in graph.model.graph:
        value, axis = _layer_input(node, known)
        if value is not None:
            name = str(value.name)
            axes[name] = axis if axes.get(name, axis) == axis else None
    moved = moved_tensors(graph)
    return [
        Observed(name, axes.get(name), histogram=name in axes)
        for name in active
        if name in axes or (every and moved.get(name) not in active)
    ]


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
    log: Log = lambda step, text: None,
    effort: Effort | None = None,
) -> Collector:
    """Statistics of `observed` over all windows of `chosen`, computed by OpenVINO in float32.

    The tensors are split, in graph order, into groups of at most `budget` bytes (or one tensor), and all windows are
    run once for each group.  state: a file that is kept while this runs, from which a later call with the same
    arguments continues, ending with the same bits.  Raises DeployError on NaN or infinite activations.
    """
    shapes = float_shapes(graph)
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
                    for _ in _run_group(
                        graph, group, windows=windows, collector=collector, threads=threads, effort=effort
                    ):
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
    windows: Iterator[tuple[Any, Float32]],
    collector: Collector,
    threads: int,
    effort: Effort,
) -> Iterator[None]:
    """Yields after each window.  The compiled graph and its outputs live no longer than this call."""
    source = str(image(graph.model).name)
    names = [item.name for item in group if item.name != source]
    with ExitStack() as stack:
        run = stack.enter_context(watching(graph, names, BuildConfig(threads=threads))) if names else _nothing
        for place, window in windows:
            begin = time.perf_counter()
            tensors = dict(zip(names, run(window), strict=True))
            ran = time.perf_counter()
            if any(item.name == source for item in group):
                tensors = {source: window, **tensors}
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


def _activations(model: ir.Model) -> list[ir.Value]:
    """Every tensor that depends on the image, in graph order."""
    found = {image(model): None}
    for node in model.graph:
        if any(value in found for value in node.inputs if value is not None):
            found |= {value: None for value in node.outputs if value.name}
    return list(found)


def float_shapes(graph: OnnxGraph) -> dict[str, tuple[int, ...] | None]:
    """The shapes of all float32 tensors but the weights; None where it is not known."""
    made = (value for node in graph.model.graph for value in node.outputs if value.name)
    return {str(value.name): shape(value) for value in (image(graph.model), *made) if is_float(value)}


def _layer_input(node: ir.Node, active: Collection[ir.Value]) -> tuple[ir.Value | None, int | None]:
    """The activation that a Linear or Conv `node` multiplies with constants, and its channels' axis from the end."""
    if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
        return None, None
    first, second = node.inputs[:2]
    if (first in active) == (second in active):  # attention, or a product of constants
        return None, None
    if node.op_type in ("Conv", "ConvTranspose"):
        return (first, -1 - len(integers(node, "kernel_shape", (1, 1)))) if first in active else (None, None)
    if first in active:
        return first, -2 if integer(node, "transA", 0) else -1
    return second, -1 if integer(node, "transB", 0) else -2


def moved_tensors(graph: OnnxGraph) -> dict[str, str]:
    """Each tensor that only reorders the values of another -> the first that holds them."""
    origins: dict[str, str] = {}
    for node in graph.model.graph:
        if node.op_type in REORDERS and node.inputs[0] is not None:
            source = str(node.inputs[0].name)
            origins[str(node.outputs[0].name)] = origins.get(source, source)
    return origins


@contextmanager
def watching(
    graph: OnnxGraph, names: Sequence[str], config: BuildConfig
) -> Iterator[Callable[[Float32], list[Float32]]]:
    """A function from a window to the tensors `names`, computed by OpenVINO in float32."""
    with stored(cut(graph.model, names)) as path, observing(path, names, config) as run:
        yield run
