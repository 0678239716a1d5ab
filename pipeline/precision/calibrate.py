"""`deploy.py calibrate`: a model and a folder of photographs become the ranges that a lowering needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from calib.ranges.collector import Observed
from calib.ranges.histogram import METHODS, check_percentile
from calib.ranges.ranges import Ranges
from calib.ranges.split import Split, photographs
from calib.ranges.windows import CalibrationSet, draw_from
from engines.contract import Log
from engines.errors import DeployError
from engines.images.read import MAX_PIXELS
from engines.spec import COLOUR, ModelSpec, Pixels
from engines.tiling.placement import Tiling
from pipeline.checkpoints.margins import load_for
from pipeline.checkpoints.sources import Source, SourceOptions
from pipeline.graph.export import simplify
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.rewrites import apply_rules
from pipeline.precision.already import refuse
from pipeline.precision.observe import Effort, collect, quantizable_tensors

# On SegFormer-B0 and CamVid (24 windows; 16 held out), only the inputs of Linear and Conv rounded to int8: label
# agreement with float32 99.3 % by mse and by percentile 99.99, 98.6 % by max, 97.8 % by entropy.
#   python benchmarks/calibration_methods.py segformer-b0-camvid camvid/train camvid/val
DEFAULT_METHOD = "mse"
DEFAULT_PERCENTILE = 99.99
DEFAULT_WINDOWS = 64


@dataclass(frozen=True)
class CalibrateRequest:
    """What `calibrate` was asked for.  dataset: folders or images.  percentile: used by that method alone.

    rewrites: whether the graph is rewritten first, as `build-engine` does unless told not to.
    """

    model: str
    dataset: Sequence[str]
    output: Path
    tiling: Tiling
    method: str = DEFAULT_METHOD
    percentile: float = DEFAULT_PERCENTILE
    windows: int = DEFAULT_WINDOWS
    seed: int = 0
    rewrites: bool = True
    threads: int = 0
    options: SourceOptions = field(default_factory=SourceOptions)
    max_pixels: int = MAX_PIXELS


def calibrate(request: CalibrateRequest, log: Log) -> tuple[Ranges, Effort]:
    """Collect ranges and write them to `request.output`, whole or not at all.  Raises DeployError.

    While it runs, its state lies beside the output; interrupted, the same call continues from there.
    """
    _check(request)
    source, tiling = load_for(request.model, request.tiling, request.options, log)
    request = replace(request, tiling=tiling)
    refuse(source.quantised, "int8", ranges=True)
    chosen = draw(request, log, source.spec.pixels)
    return measure(graph_of(source, request.rewrites), chosen, source.spec, request, log)


def measure(
    graph: OnnxGraph, chosen: CalibrationSet, spec: ModelSpec, request: CalibrateRequest, log: Log
) -> tuple[Ranges, Effort]:
    """As `calibrate`, of a graph that is at hand."""
    effort = Effort()
    ranges = collect_ranges(graph, chosen, spec=spec, request=request, log=log, effort=effort)
    ranges.save(request.output)
    log("ranges", f"{request.output}, graph {ranges.graph_sha256[:12]}")
    return ranges, effort


def draw(request: CalibrateRequest, log: Log, wanted: Pixels = COLOUR, division: Split | None = None) -> CalibrationSet:
    """The windows that `request` asks for, of images read as `wanted`; given a division, from what is not held out."""
    images, notes = photographs(request.dataset) if division is None else (division.calibration, [])
    chosen = draw_from(
        images, request.tiling, count=request.windows, seed=request.seed, max_pixels=request.max_pixels, notes=notes,
        wanted=wanted,
    )  # fmt: skip
    log("dataset", f"{len(chosen.paths)} image(s), sha256 {chosen.sha256[:12]}")
    log("windows", f"{len(chosen.places)} from {chosen.images} image(s), seed {request.seed}")
    for note in chosen.notes:
        log("warning", note)
    return chosen


def graph_of(source: Source, rewrites: bool = True) -> OnnxGraph:
    """The graph whose tensors are measured: the one that `pipeline.build` lowers, without its verification."""
    graph = simplify(source.export()[0])
    return apply_rules(graph)[-1] if rewrites else graph


def collect_ranges(
    graph: OnnxGraph, chosen: CalibrationSet, spec: ModelSpec, request: CalibrateRequest, log: Log, effort: Effort
) -> Ranges:
    """Run the windows through the graph and measure what its layers read; state lies beside `request.output`."""
    observed = quantizable_tensors(graph)
    if not any(item.histogram for item in observed):
        raise DeployError("calibration: got a graph without any Linear or Conv of float32 and constant weights")
    logits = str(graph.model.graph.outputs[0].name)  # so that no NaN passes, not even one that the last layer makes
    if logits not in {item.name for item in observed}:
        observed.append(Observed(logits, histogram=False))
    state = request.output.with_name(f".{request.output.name}.partial.npz")
    collector = collect(
        graph, chosen, spec=spec, tiling=request.tiling, observed=observed, state=state, threads=request.threads,
        log=log, effort=effort,
    )  # fmt: skip
    tensors = collector.ranges(request.method, request.percentile)
    seconds = effort.network + effort.statistics
    log(
        "collect",
        f"{len(tensors)} tensors by {request.method}, {effort.passes} pass(es) over the windows; "
        f"{seconds:.1f} s, {100 * effort.network / max(seconds, 1e-9):.0f} % of it the network",
    )
    method = f"percentile:{request.percentile:g}" if request.method == "percentile" else request.method
    return Ranges(
        tensors, method, images=chosen.images, windows=len(chosen.places),
        seed=request.seed, dataset_sha256=chosen.sha256, graph_sha256=graph_sha256(graph.model),
        photographs=chosen.seen,
    )  # fmt: skip


def _check(request: CalibrateRequest) -> None:
    """What can be refused before the long work."""
    if request.method not in METHODS:
        raise DeployError(f"--method: got {request.method!r}, expected one of {', '.join(METHODS)}")
    check_percentile(request.percentile)
    if request.seed < 0:
        raise DeployError(f"--seed: got {request.seed}, expected 0 or more")
    if request.output.is_dir() or not request.output.parent.is_dir():
        raise DeployError(f"output {request.output}: expected a file to write in a folder that exists")
