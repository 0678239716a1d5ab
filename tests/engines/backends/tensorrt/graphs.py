"""The real graphs of small networks in every precision, as the pipeline lowers them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from calib.data.scenes import render
from engines.contract import Float32
from engines.proof.agreement import Gate
from engines.proof.golden import windows_of
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.export import simplify
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.proto import save
from pipeline.graph.rewrites import apply_rules
from pipeline.precision.lower import lower
from pipeline.precision.plan import PrecisionPlan
from pipeline.request import LowerOptions
from tests.pipeline.precision.max_ranges import ranges_from_windows

NETWORKS = {
    "segformer": ("tests.models:tiny", (64, 64)),
    "naive": ("tests.models:tiny_setr", (64, 64)),
    "pup": ("tests.models:tiny_pup", (64, 96)),
    "mla": ("tests.models:tiny_mla", (64, 96)),
    "demo": ("demo", (64, 64)),  # SegFormer-B0
}
_ANYTHING = Gate(1e9, 0.0)  # whether a lowering is good is asked elsewhere


@dataclass(frozen=True)
class Made:
    """path: the graph's file.  plan: of the floats, None for fp32."""

    path: Path
    graph: OnnxGraph
    plan: PrecisionPlan | None


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def _exact(network: str) -> tuple[OnnxGraph, tuple[Float32, ...], Float32]:
    model, (height, width) = NETWORKS[network]
    source = load_source(model, (height, width), SourceOptions())
    graph = apply_rules(simplify(source.export()[0]))[-1]
    tiling = Tiling(height, width, height, width)
    windows = tuple(windows_of(render(0, height, 2 * width).image, source.spec, tiling))
    return graph, windows, run_onnx(graph, list(windows))


@cache
def made(network: str, precision: str) -> Made:
    graph, windows, reference = _exact(network)
    ranges = ranges_from_windows(graph, windows) if precision == "int8" else None
    options = LowerOptions(rest="fp16")
    lowered = lower(graph, precision, windows, reference, _ANYTHING, lambda *_: None, ranges, options)
    path = Path(_folder().name) / f"{network}-{precision}.onnx"
    save(lowered.graph.model, path)
    plan = lowered.report.get("rest" if precision == "int8" else "plan")
    return Made(path, lowered.graph, None if plan is None else PrecisionPlan.from_json(plan))
