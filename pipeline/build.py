"""A trained model becomes a bundle, and every step proves that it still is that model."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from calib.data.scenes import render
from calib.ranges.windows import first_image
from engines.backends import choose_backend
from engines.bundle import GOLDEN, MODEL, Manifest, writing
from engines.contract import Backend, BuildConfig, Float32
from engines.errors import DeployError
from engines.images.read import read_image
from engines.proof.agreement import GATES, Agreement, Gate, compare_logits
from engines.proof.batch_gate import reported, require_neutral
from engines.proof.golden import Golden, windows_of
from engines.proof.rebuild import Log, compile_engine, describe, finish, tuning
from engines.tiling.core import blend_weights
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import Source, load_source, summary
from pipeline.graph.batches import for_any_batch
from pipeline.graph.export import simplify
from pipeline.graph.macs import count_macs
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.rewrites import apply_rules, describe_step
from pipeline.graph.rewrites.gains import time_stages
from pipeline.precision.as_asked import lower_as_asked
from pipeline.request import BuildRequest


def build_bundle(request: BuildRequest, log: Log) -> Manifest:
    """Build, verify and write one bundle.  Raises DeployError or GateError; then nothing is written or replaced.

    log: called with (step, what happened) as each step ends.
    """
    backend, why = choose_backend(request.backend, "fp32" if request.precision == "auto" else request.precision)
    log("backend", f"{why}; {backend.version()} on {backend.device()}")
    tuned = tuning(backend, request.output, request.tensorrt, request.timing_cache, log)
    tiling, trial = request.tiling, replace(tuned, threads=request.threads, log=BuildConfig.log)  # of many: in silence
    with writing(request.output) as folder:
        source = load_source(request.model, (tiling.window_h, tiling.window_w), request.options)
        log("load", summary(source.spec))
        image = sample_image(_photograph(request), tiling)
        inputs = windows_of(image, source.spec, tiling)
        reference = source.logits(inputs)
        program = folder / "program.pt2"
        exact = request.gate("fp32") if request.precision == "fp32" else GATES["fp32"]
        graph, steps = to_onnx(source, inputs, reference, program, exact, log)
        _check_interface(source, graph)
        if request.rewrites:
            graph, rewritten = _rewrite(graph, inputs, exact, backend if request.time_rewrites else None, trial, log)
            steps.append(rewritten)
        if request.tensorrt.dla is not None:  # a question: answered here, and not after an hour of calibration
            _save(graph, folder / MODEL)
            backend.build(folder / MODEL, tuned)
        precision, lowered = lower_as_asked(request, source, backend, graph, inputs, reference, trial, log)
        gate, graph = request.gate(precision), lowered.graph
        steps.extend(lowered.agreements)
        graph = _for_batches(graph, inputs, request.batch, log)
        golden = Golden.sample(image, reference, slide_labels(reference, tiling, image.shape[:2]), source.reference)
        golden.save(folder / GOLDEN)
        _save(graph, folder / MODEL)
        tuned = replace(tuned, precision=precision, threads=request.threads, batch=request.batch)
        config = replace(tuned, program=program if program.exists() else None)
        proof = compile_engine(folder, backend, config, golden, source.spec, tiling, gate, log)
        program.unlink(missing_ok=True)
        draft = _draft(request, precision, source, backend, graph, steps)
        report = {"history": [step.to_json() for step in graph.history], "gate": asdict(gate), **lowered.report}
        report |= reported(proof, config)
        manifest = finish(folder, describe(draft, backend, proof), report)
    return manifest


def _photograph(request: BuildRequest) -> NDArray[np.uint8] | None:
    """What to verify on: the sample, else the first photograph, rather than a scene unlike the model's data."""
    if request.sample is not None or not request.photographs:
        return request.sample
    return read_image(first_image(request.photographs), request.max_pixels)


def sample_image(image: NDArray[np.uint8] | None, tiling: Tiling) -> NDArray[np.uint8]:
    """What the build is verified on: two overlapping windows of the given photograph, or of a rendered scene."""
    height, width = tiling.window_h, tiling.window_w + tiling.stride_w
    if image is None:
        return render(0, height, width).image
    return np.ascontiguousarray(image[:height, :width])


def to_onnx(
    source: Source, inputs: list[Float32], reference: Float32, program: Path, gate: Gate, log: Log
) -> tuple[OnnxGraph, list[Agreement]]:
    """Export and simplify, each verified against the step before.  Raises GateError at the first that diverges."""
    exported = source.export(program)
    logits = run_onnx(exported, inputs)
    steps = [compare_logits("export", logits, source.reference, reference)]
    simplified = simplify(exported)
    steps.append(compare_logits("simplify", run_onnx(simplified, inputs), "the exported graph", logits))
    for step, graph in zip(steps, (exported, simplified), strict=True):
        step.require(gate)
        log(step.step, f"{graph.history[-1].rule}, {graph.history[-1].count} nodes; {step}")
    return simplified, steps


def _rewrite(
    graph: OnnxGraph, inputs: list[Float32], gate: Gate, timer: Backend | None, config: BuildConfig, log: Log
) -> tuple[OnnxGraph, Agreement]:
    """The same function, cheaper.  Raises GateError at the first rule after which it is not the same.

    timer: the backend to measure each rule's gain with, or None.  config: of the engines that it is measured on.
    """
    logits = run_onnx(graph, inputs)
    stages = apply_rules(graph)
    final = stages[-1]
    if timer is not None:
        final = time_stages(graph, stages, timer, config, inputs[0])
    agreement = compare_logits("rewrite", run_onnx(final, inputs), "the simplified graph", logits)
    if not agreement.within(gate):
        for stage in stages:
            name = f"rewrite '{stage.history[-1].rule}'"
            compare_logits(name, run_onnx(stage, inputs), "the simplified graph", logits).require(gate)
    for step in final.history[len(graph.history) :]:
        log("rewrite", describe_step(step))
    log("rewrite", f"{count_macs(graph) / 1e9:.2f} -> {count_macs(final) / 1e9:.2f} GMAC a window; {agreement}")
    return final, agreement


def _for_batches(graph: OnnxGraph, inputs: list[Float32], batch: int, log: Log) -> OnnxGraph:
    """The same graph for any number of windows at once.  Raises DeployError where it cannot be and must."""
    neutral = for_any_batch(graph, inputs, (2, 3) if batch > 1 else (2,))
    step = neutral.history[-1]
    log("batch", f"{step.rule}: {f'declined, {step.declined}' if step.declined else f'{step.places} place(s)'}")
    require_neutral([step.to_json()], batch)
    return neutral


def slide_labels(logits: Float32, tiling: Tiling, size: tuple[int, int]) -> NDArray[np.uint8]:
    """mmsegmentation's slide mode in PyTorch, for logits (M, K, h, w) of all windows of an image of `size`."""
    height, width = size
    window = (tiling.window_h, tiling.window_w)
    tops, lefts = tiling.placements(height, width)
    total = torch.zeros(logits.shape[1], max(height, window[0]), max(width, window[1]))
    weights = blend_weights(tiling.blend, *window)
    weight = torch.ones(window) if weights is None else torch.from_numpy(np.outer(*weights))
    places = [(top, left) for top in tops for left in lefts]
    for (top, left), values in zip(places, torch.from_numpy(logits), strict=True):
        full = F.interpolate(values[None], size=window, mode="bilinear", align_corners=False)[0]
        total[:, top : top + window[0], left : left + window[1]] += full * weight
    # The sum of weights is the same for every class of a pixel, so argmax needs no division.
    return total[:, :height, :width].argmax(0).to(torch.uint8).numpy()


def _check_interface(source: Source, graph: OnnxGraph) -> None:
    """The logits must cover the window evenly, one channel a class, or the runtime would stretch them wrongly."""
    _, channels, height, width = graph.output_shape
    _, _, window_h, window_w = graph.input_shape
    if channels != len(source.spec.classes):
        raise DeployError(
            f"model: got {channels} output channels, expected {len(source.spec.classes)} as the classes; "
            "fix id2label, or give --classes"
        )
    if window_h * width != window_w * height:
        raise DeployError(
            f"model: got {width}x{height} logits for a {window_w}x{window_h} window, expected the same proportions; "
            "choose a --tile that the model divides evenly"
        )


def _draft(
    request: BuildRequest, precision: str, source: Source, backend: Backend, graph: OnnxGraph, steps: list[Agreement]
) -> Manifest:
    return Manifest(
        spec=source.spec, tiling=request.tiling, precision=precision,
        backend=backend.name, sdk=backend.version(), device=backend.device(),
        input_shape=graph.input_shape, output_shape=graph.output_shape,
        verification=tuple(step.to_json() for step in steps), created="", files={}, batch=request.batch,
        tensorrt=request.tensorrt,
    )  # fmt: skip


def _save(graph: OnnxGraph, path: Path) -> None:
    if graph.model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise DeployError(f"model: got {graph.model.ByteSize() / 1e9:.1f} GB of weights, expected less than 2 GB")
    onnx.save(graph.model, path)
