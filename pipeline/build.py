"""A trained model becomes a bundle, and every step proves that it still is that model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from engines.backends import choose_backend
from engines.bundle import GOLDEN, MODEL, Manifest, writing
from engines.contract import Backend, BuildConfig, Float32, Log, UInt8
from engines.guard.ledger import temporary_folder
from engines.proof.agreement import Agreement
from engines.proof.batch_gate import reported, require_neutral
from engines.proof.golden import Golden
from engines.proof.rebuild import compile_engine, describe, finish, tuning
from engines.tiling.core import blend_weights
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import Source, announce, load_source
from pipeline.exact import Exact, exact_graph
from pipeline.graph.batches import for_any_batch
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import check, save
from pipeline.precision.as_asked import lower_as_asked
from pipeline.request import BuildRequest


def build_bundle(request: BuildRequest, log: Log, exact: Exact | None = None) -> Manifest:
    """Build, verify and write one bundle.  Raises DeployError or GateError; then nothing is written or replaced.

    log: called with (step, what happened) as each step ends.  exact: the model's verified graph, where several
    precisions are built from one.
    """
    backend, why = choose_backend(
        request.backend, "fp32" if request.precision == "auto" else request.precision, runs=False
    )
    log("backend", f"{why}; {backend.version()} on {backend.device()}")
    tuned = tuning(backend, request.output, given=request.tensorrt, timing_cache=request.timing_cache, log=log)
    tiling, trial = request.tiling, replace(tuned, threads=request.threads, log=BuildConfig.log)  # of many: in silence
    with writing(request.output) as folder:
        if exact is None:
            source = load_source(request.model, (tiling.window_h, tiling.window_w), request.options)
            announce(source, log)
            exact = exact_graph(source, request, log, timer=backend if request.time_rewrites else None, config=trial)
        source, inputs, reference = exact.source, exact.inputs, exact.reference
        precision, lowered = lower_as_asked(
            request,
            source,
            backend=backend,
            graph=exact.graph,
            inputs=inputs,
            reference=reference,
            config=trial,
            log=log,
        )
        gate, steps = request.gate(precision), [*exact.steps, *lowered.agreements]
        graph = _for_batches(lowered.graph, inputs, request.batch, log)
        labels = slide_labels(reference, tiling, exact.image.shape[:2], source.spec.threshold)
        golden = Golden.sample(exact.image, reference, labels, source.reference)
        golden.save(folder / GOLDEN)
        _save(graph, folder / MODEL)
        tuned = replace(tuned, precision=precision, threads=request.threads, batch=request.batch)
        with _program(exact, backend) as program:
            config = replace(tuned, program=program)
            proof = compile_engine(
                folder, backend, config=config, golden=golden, spec=source.spec, tiling=tiling, gate=gate, log=log
            )
        draft = _draft(request, precision, source=source, backend=backend, graph=graph, steps=steps)
        report = {"history": [step.to_json() for step in graph.history], "gate": asdict(gate), **lowered.report}
        report |= reported(proof, config)
        manifest = finish(folder, describe(draft, backend, proof), report)
    return manifest


@contextmanager
def _program(exact: Exact, backend: Backend) -> Iterator[Path | None]:
    """A torch.export file for the time of a build, where `backend` reads one and the model has a module."""
    if exact.program is None or not backend.from_program:
        yield None
        return
    with temporary_folder() as folder:
        path = folder / "program.pt2"
        torch.export.save(exact.program, path)
        yield path


def _for_batches(graph: OnnxGraph, inputs: list[Float32], batch: int, log: Log) -> OnnxGraph:
    """The same graph for any number of windows at once.  Raises DeployError where it cannot be and must."""
    neutral = for_any_batch(graph, inputs, (2, 3) if batch > 1 else ())
    step = neutral.history[-1]
    log("batch", f"{step.rule}: {f'declined, {step.declined}' if step.declined else f'{step.places} place(s)'}")
    require_neutral([step.to_json()], batch)
    return neutral


def slide_labels(logits: Float32, tiling: Tiling, size: tuple[int, int], threshold: float | None = None) -> UInt8:
    """mmsegmentation's slide mode in PyTorch, for logits (M, K, h, w) of all windows of an image of `size`.

    threshold: `ModelSpec.threshold`.
    """
    height, width = size
    window = (tiling.window_h, tiling.window_w)
    tops, lefts = tiling.placements(height, width)
    total = torch.zeros(logits.shape[1], max(height, window[0]), max(width, window[1]))
    summed = torch.zeros(total.shape[1:])
    weights = blend_weights(tiling.blend, *window)
    weight = torch.ones(window) if weights is None else torch.from_numpy(np.outer(*weights))
    places = [(top, left) for top in tops for left in lefts]
    for (top, left), values in zip(places, torch.from_numpy(logits), strict=True):
        full = F.interpolate(values[None], size=window, mode="bilinear", align_corners=False)[0]
        total[:, top : top + window[0], left : left + window[1]] += full * weight
        summed[top : top + window[0], left : left + window[1]] += weight
    # The sum of weights is the same for every class of a pixel, so argmax needs no division.
    labels = total.argmax(0) if threshold is None else (total[0] / summed).double().sigmoid() > threshold
    return labels[:height, :width].to(torch.uint8).numpy()


def _draft(
    request: BuildRequest,
    precision: str,
    source: Source,
    backend: Backend,
    graph: OnnxGraph,
    steps: Sequence[Agreement],
) -> Manifest:
    return Manifest(
        spec=source.spec, tiling=request.tiling, precision=precision,
        backend=backend.name, sdk=backend.version(), device=backend.device(),
        input_shape=graph.input_shape, output_shape=graph.output_shape,
        verification=tuple(step.to_json() for step in steps), created="", files={}, batch=request.batch,
        tensorrt=request.tensorrt,
    )  # fmt: skip


def _save(graph: OnnxGraph, path: Path) -> None:
    check(graph.model)
    save(graph.model, path)
