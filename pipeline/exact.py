"""A trained model becomes an fp32 graph that is proven to compute the same: what every precision is lowered from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from calib.data.scenes import render_bands
from engines.contract import Backend, BuildConfig, Float32, Log, UInt8
from engines.errors import DeployError
from engines.images.read import read_image
from engines.images.resize import sized
from engines.proof.agreement import GATES, ONE_LABEL, UNSURE, Agreement, Gate, compare_logits
from engines.proof.golden import windows_of
from engines.proof.stress import grid, stress_windows
from engines.spec import Pixels
from engines.tiling.placement import Tiling
from pipeline.checkpoints.probe import covers_evenly
from pipeline.checkpoints.sources import Source
from pipeline.graph.export import simplify
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.macs import count_macs
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.rewrites import apply_rules, describe_step
from pipeline.request import BuildRequest
from pipeline.side_by_side import time_stages


@dataclass(frozen=True)
class Exact:
    """The model as a verified fp32 graph.

    image: (H, W, 3) uint8, what it was verified on; inputs: its windows, (1, 3, h, w) float32 each.
    reference: the model's own logits (M, K, h, w) for them.  steps: export, simplification, rewriting, each compared
    with the step before.  program: the module as torch.export captured it; None of an .onnx.
    stress: where the labels of the reference are one class, a grid of its logits on a stress input that shows more.
    """

    source: Source
    image: UInt8
    inputs: list[Float32]
    reference: Float32
    graph: OnnxGraph
    steps: tuple[Agreement, ...]
    program: torch.export.ExportedProgram | None
    stress: Float32 | None = None


def exact_graph(
    source: Source, request: BuildRequest, log: Log, *, timer: Backend | None = None, config: BuildConfig | None = None
) -> Exact:
    """Export, simplify and rewrite, each verified against the step before.  Raises DeployError or GateError.

    timer: the backend to measure each rewrite's gain with, or None.  config: of the engines that it is measured on.
    """
    tiling = request.tiling
    photograph, channels = _photograph(request, request.wanted(source.spec)), len(source.spec.mean)
    if photograph is not None:
        photograph = sized(photograph, source.spec, tiling)
    image = sample_image(photograph, tiling, channels)
    inputs = windows_of(image, source.spec, tiling)
    reference = source.logits(inputs)
    gate = request.gate("fp32") if request.precision == "fp32" else GATES["int8" if source.quantised else "fp32"]
    count = len(inputs)
    if _known(
        compare_logits("sample", reference, source.reference, reference, gate, source.spec.threshold), request, log
    ):
        inputs = [*inputs, *stress_windows(image, source.spec, tiling)[:1]]
        reference = np.concatenate([reference, source.logits(inputs[count:])])
    graph, program = source.export()
    logits = run_onnx(graph, inputs)
    steps = [_verified("export", graph, source.reference, logits, reference, gate, log)]
    graph, logits = _simplified(graph, inputs, logits=logits, gate=gate, steps=steps, log=log)
    _check_interface(source, graph, tiling)
    if request.rewrites:
        graph, rewritten = _rewrite(
            graph, inputs, logits=logits, gate=gate, timer=timer, config=config or BuildConfig(), log=log
        )
        steps.append(rewritten)
    return Exact(
        source,
        image,
        inputs=inputs[:count],
        reference=reference[:count],
        graph=graph,
        steps=tuple(steps),
        program=program,
        stress=grid(reference[count:]) if len(inputs) > count else None,
    )


def _known(sample: Agreement, request: BuildRequest, log: Log) -> bool:
    """Say how far the network knows what it is verified on.  Returns whether that is too little: all is one class."""
    rendered = request.sample is None and request.sample_file is None and not request.photographs
    what = "a rendered street" if rendered else "the photograph"
    log("sample", f"{what}, on which the network gives its labels a mean probability of {sample.confidence or 0.0:.2f}")
    if (sample.confidence or 0.0) < UNSURE:
        better = "--sample PHOTO or --calib DATASET gives one that it knows" if rendered else "--sample takes another"
        log("warning", f"the network is unsure of {what}: its labels there are weak evidence; {better}")
    if sample.one_label < ONE_LABEL:
        return False
    log("warning", f"{sample.no_evidence} there: equal labels prove nothing, logits decide, also on variants of it")
    return True


def _photograph(request: BuildRequest, wanted: Pixels) -> UInt8 | None:
    """What to verify on: the sample, else a photograph that is held out; None for a scene, unlike the model's data."""
    if request.sample is not None:
        return request.sample
    taken = request.sample_file
    if taken is None and request.photographs is not None:
        taken = request.photographs.golden
    return None if taken is None else read_image(taken.path, request.max_pixels, wanted)


def sample_image(image: UInt8 | None, tiling: Tiling, channels: int = 3) -> UInt8:
    """What the build is verified on: two overlapping windows of the given photograph, or of a rendered scene."""
    height, width = tiling.labelled[0], tiling.labelled[1] + tiling.stride_w
    if image is None:
        return render_bands(0, height, width, channels)
    return np.ascontiguousarray(image[:height, :width])


def _verified(
    step: str, graph: OnnxGraph, before: str, logits: Float32, expected: Float32, gate: Gate, log: Log
) -> Agreement:
    agreement = compare_logits(step, logits, before, expected, gate)
    agreement.require(gate)
    log(step, f"{graph.history[-1].rule}, {graph.history[-1].count} nodes; {agreement}")
    return agreement


def _simplified(
    graph: OnnxGraph, inputs: list[Float32], logits: Float32, gate: Gate, steps: list[Agreement], log: Log
) -> tuple[OnnxGraph, Float32]:
    """The simplified graph and its logits: those at hand where it is the very same graph."""
    simplified = simplify(graph)
    same = graph_sha256(simplified.model) == graph_sha256(graph.model)
    after = logits if same else run_onnx(simplified, inputs)
    steps.append(_verified("simplify", simplified, "the exported graph", after, logits, gate, log))
    return simplified, after


def _rewrite(
    graph: OnnxGraph, inputs: list[Float32], logits: Float32, gate: Gate, timer: Backend | None, config: BuildConfig,
    log: Log,
) -> tuple[OnnxGraph, Agreement]:  # fmt: skip
    """The same function, cheaper.  Raises GateError at the first rule after which it is not the same.

    logits: of `graph` for `inputs`.
    """
    stages = apply_rules(graph)
    final = stages[-1]
    if timer is not None:
        final = time_stages(graph, stages, backend=timer, config=config, window=inputs[0])
    made = final.history[len(graph.history) :]
    after = run_onnx(final, inputs) if any(step.places for step in made) else logits
    agreement = compare_logits("rewrite", after, "the simplified graph", logits, gate)
    if not agreement.within(gate):
        for stage in stages:
            name = f"rewrite '{stage.history[-1].rule}'"
            compare_logits(name, run_onnx(stage, inputs), "the simplified graph", logits, gate).require(gate)
    for step in made:
        log("rewrite", describe_step(step))
    log("rewrite", f"{count_macs(graph) / 1e9:.2f} -> {count_macs(final) / 1e9:.2f} GMAC a window; {agreement}")
    return final, agreement


def _check_interface(source: Source, graph: OnnxGraph, tiling: Tiling) -> None:
    """The logits must cover what is labelled evenly, a channel a class, or the runtime would stretch them wrongly."""
    _, channels, height, width = graph.output_shape
    window_h, window_w = tiling.labelled
    if channels != source.spec.channels:
        raise DeployError(
            f"model: got {channels} output channels, expected {source.spec.channels} as the classes; "
            "fix id2label, or give --classes"
        )
    if not covers_evenly((height, width), (window_h, window_w)):
        raise DeployError(
            f"model: got {width}x{height} logits for a {window_w}x{window_h} window, expected one stride along "
            "both axes; choose a --tile that the model divides evenly"
        )
    if window_h / 2 < height < window_h:
        raise DeployError(
            f"model: got {width}x{height} logits for a {window_w}x{window_h} window, expected one a pixel, or one for "
            "several: its borders have no labels, and its graph does not tell how wide they are; export it padded"
        )
