"""A trained model becomes a bundle, and every step proves that it still is that model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from engines.backends import choose_backend
from engines.bundle import ENGINE, GOLDEN, KERNELS, MODEL, TAIL, Manifest, writing
from engines.contract import Backend, BuildConfig, Float32, Log
from engines.errors import GateError
from engines.guard.ledger import temporary_folder
from engines.proof.agreement import GATES, Agreement, Gate, spread
from engines.proof.batch_gate import reported, require_neutral
from engines.proof.golden import Golden
from engines.proof.rebuild import compile_engine, describe, finish, tuning
from engines.segmenter import Segmenter, open_on_device
from engines.tiling.placement import Tiling
from engines.tiling.tail import Tail, TailShape
from pipeline.checkpoints.margins import load_for
from pipeline.checkpoints.processor import announce_resize
from pipeline.checkpoints.sources import Source
from pipeline.evaluation.slide import slide_decisions
from pipeline.evaluation.statistics import Interval
from pipeline.exact import Exact, exact_graph
from pipeline.graph.batches import for_any_batch
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.proto import check, save
from pipeline.graph.tail import Cut, before_tail, cut_tail, ending_for, suits
from pipeline.graph.types import FLOATS
from pipeline.precision.already import as_it_is
from pipeline.precision.as_asked import Asked, as_asked, half_of
from pipeline.precision.budget import Jury
from pipeline.precision.forms import formed, judge_for
from pipeline.precision.interface import interface_for
from pipeline.precision.leave import advice, contributions, leaving
from pipeline.precision.lower import draft, lower
from pipeline.precision.placement import aimed, board_of
from pipeline.precision.plan import EIGHT_BIT
from pipeline.precision.planned import emulated
from pipeline.precision.search import Candidate
from pipeline.precision.worth import against, tells
from pipeline.provenance import announce, provenance
from pipeline.request import BuildRequest, LowerOptions


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
    trial = replace(tuned, threads=request.threads, log=BuildConfig.log)  # of many: in silence
    with writing(request.output) as folder:
        if exact is None:
            source, tiling = load_for(request.model, request.tiling, request.options, log)
            request = replace(request, tiling=tiling)
            announce_resize(source.spec, tiling, log)
            if source.quantised:
                request = as_it_is(request, source.quantised, source.export()[0].model, backend)
            announce(request.photographs, log)
            exact = exact_graph(source, request, log, timer=backend if request.time_rewrites else None, config=trial)
        source = exact.source
        exact, stages = _served(exact, request, backend, trial, log)
        asked = as_asked(
            request, source, backend, stages, inputs=exact.inputs, config=trial, log=log, image=exact.image
        )
        tuned = replace(tuned, threads=request.threads, batch=request.batch)
        with _program(exact, backend) as program:
            config = replace(tuned, program=program)
            built = _first_that_passes(folder, request, exact, asked, backend=backend, config=config, log=log)
        draft = _draft(request, built.plan.precision, source=source, backend=backend, graph=built.graph,
                       steps=[*exact.steps, *built.steps])  # fmt: skip
        photographs = provenance(request, asked.report.get("calibration"), log)
        draft = replace(draft, photographs=photographs, tail=built.tail)
        manifest = finish(folder, describe(draft, backend, built.proof), built.report)
    return manifest


def _served(
    exact: Exact, request: BuildRequest, backend: Backend, config: BuildConfig, log: Log
) -> tuple[Exact, tuple[OnnxGraph, ...]]:
    """In the forms that serve `backend`; and the graphs on the way there, of whose first ranges are measured."""
    activations = request.precision if request.precision in FLOATS else half_of(backend)
    judge = judge_for(
        backend, activations, config, window=exact.inputs[0], clock=request.time_rewrites, log=log,
        tail=request.tail and suits(backend), eight=aimed(request.lowering.int8, backend, request.precision),
    )  # fmt: skip
    if judge is None or not request.rewrites:
        return exact, (exact.graph,)
    forms = formed(exact.graph, judge, inputs=exact.inputs, reference=exact.reference, log=log)
    return replace(exact, graph=forms.graph, steps=(*exact.steps, *forms.steps)), forms.stages


@dataclass(frozen=True)
class _Built:
    """An engine that lies in the bundle's folder, with what proved it."""

    plan: Candidate
    graph: OnnxGraph
    steps: tuple[Agreement, ...]
    proof: list[Agreement]
    report: dict[str, Any]
    tail: TailShape | None = None


def _first_that_passes(
    folder: Path, request: BuildRequest, exact: Exact, asked: Asked, backend: Backend, config: BuildConfig, log: Log
) -> _Built:  # fmt: skip
    """The first of the plans that stays inside its gate and, once it is an engine, inside the budget.

    Raises GateError where none does.
    """

    def attempt(plan: Candidate, options: LowerOptions) -> _Built:
        for left in folder.iterdir():
            left.unlink()
        return _built(folder, request, exact, asked, plan, options, backend=backend, config=config, log=log)

    for plan, following in zip(asked.plans, [*asked.plans[1:], None], strict=True):
        try:
            return attempt(plan, asked.options_of(plan))
        except GateError as error:
            if following is None:
                return _without_the_worst(error, request, exact, asked, plan, attempt, log)
            log("auto", f"{plan.name} fails ({error}); next {following.name}")
    raise AssertionError("there is always a plan")


def _without_the_worst(
    error: GateError, request: BuildRequest, exact: Exact, asked: Asked, plan: Candidate,
    attempt: Callable[[Candidate, LowerOptions], _Built], log: Log,
) -> _Built:  # fmt: skip
    """Of an INT8 build that fails: without the layers that cost most, where there is a budget.

    Raises `error`, of INT8 with the names of those layers.
    """
    if plan.precision not in EIGHT_BIT or asked.ranges is None or request.precision == "auto":
        raise error
    chosen = asked.options_of(plan)
    costs = contributions(exact.graph, asked.ranges, chosen, exact.inputs[0], exact.reference[:1])
    if not request.leave:
        raise GateError(f"{error}; {advice(costs)}") from error
    built, left = leaving(error, lambda options: attempt(plan, options), costs, chosen, log)
    return replace(built, report={**built.report, "left": [asdict(each) for each in left]})


def _built(
    folder: Path, request: BuildRequest, exact: Exact, asked: Asked, plan: Candidate, options: LowerOptions,
    backend: Backend, config: BuildConfig, log: Log,
) -> _Built:  # fmt: skip
    gate, spec, tiling = request.gate(plan.precision), exact.source.spec, request.tiling
    lowered = lower(
        exact.graph, plan.precision, windows=exact.inputs, reference=exact.reference, gate=gate, log=log,
        ranges=asked.ranges, options=options, views=asked.views, threshold=spec.threshold,
    )  # fmt: skip
    graph = _for_batches(lowered.graph, exact.inputs, request.batch, log)
    cut = _cut(request, exact, lowered.graph, graph, backend, gate, log)
    tail = None if cut is None else cut.tail
    stress = exact.stress if asked.views.stress is None else asked.views.stress.logits
    golden = _golden(exact, tiling, gate, stress)
    golden.save(folder / GOLDEN)
    _save(interface_for(backend, graph.model if cut is None else cut.model), folder / MODEL)
    if cut is not None:
        cut.tail.save(folder / TAIL)
    worth = _worth(folder, exact, asked, plan, options, backend, cut is not None, log)
    config = replace(config, precision=plan.precision)
    proof = compile_engine(
        folder, backend, config=config, golden=golden, spec=spec, tiling=tiling, gate=gate, log=log,
        tail=tail,
    )  # fmt: skip
    kept = _kept(gate, plan.precision, proof)
    history = graph.history if cut is None else (*graph.history, cut.step)
    report = {"history": [step.to_json() for step in history], "gate": kept.to_json(), **asked.report}
    report |= {**lowered.report, **worth, **reported(proof, config)}
    if request.strides:
        report["strides"] = [each.to_json() for each in request.strides]
    if asked.jury is not None:
        loss = _loss(folder, graph, request, exact, asked.jury, backend, config=config, tail=tail)
        log("shipped", f"{'emulated, it' if backend.only_builds() else 'the engine'} loses {loss} on {asked.jury}")
        report["shipped"] = {"plan": plan.name, "loss": asdict(loss), **asked.jury.to_json()}
        if plan.precision != "fp32":  # which is what the others are held against
            asked.jury.require(loss)
    steps = lowered.agreements if cut is None else (*lowered.agreements, cut.proof)
    return _Built(plan, graph, steps, proof=proof, report=report, tail=None if tail is None else tail.shape)


def _cut(
    request: BuildRequest, exact: Exact, lowered: OnnxGraph, neutral: OnnxGraph, backend: Backend, gate: Gate, log: Log
) -> Cut | None:  # fmt: skip
    """The graph without its decoder's tail, where that is taken off."""
    if not request.tail:
        return None
    if not suits(backend):
        log("warning", f"--tail: {backend.name} keeps a decoder's tail in the engine, expected a GPU")
        return None
    threshold = exact.source.spec.threshold
    return cut_tail(
        exact.graph, lowered, neutral, exact.inputs, exact.reference, gate=gate, threshold=threshold, log=log
    )  # fmt: skip


def _worth(
    folder: Path, exact: Exact, asked: Asked, plan: Candidate, options: LowerOptions, backend: Backend, tail: bool,
    log: Log,
) -> dict[str, Any]:  # fmt: skip
    """For report.json: what 8 bits are worth by the roofline, where the compiler tells; the log says it, too.

    tail: whether it was cut off the engine.
    """
    if plan.precision not in EIGHT_BIT or options.kept or not tells(backend) or options.rest == "fp32":
        return {}
    half = before_tail(
        draft(exact.graph, options.rest, exact.inputs, asked.ranges, options, views=asked.views).graph,
        ending_for(backend, exact.graph, tail),
    )  # fmt: skip
    found = against(backend, folder / MODEL, half, board_of(options.int8.board), plan.precision, options.rest)
    log("roofline" if found.pays else "warning", f"{'' if found.pays else 'roofline: '}{found}")
    return {"roofline": found.to_json()}


def _golden(exact: Exact, tiling: Tiling, gate: Gate, stress: Float32 | None) -> Golden:
    reference = exact.reference
    labels, margin = slide_decisions(reference, tiling, exact.image.shape[:2], exact.source.spec.threshold)
    return Golden.sample(
        exact.image, reference, labels, exact.source.reference, ties=margin < gate.ties * spread(reference),
        stress=stress,
    )  # fmt: skip


def _kept(gate: Gate, precision: str, proof: Sequence[Agreement]) -> Gate:
    """The gate of rebuilds: as here, or as tight as what was built allows where labels have decided here."""
    if gate.max_relative < math.inf:
        return gate
    for agreement in proof:
        gate = agreement.allowance(GATES[precision] if gate.max_relative == math.inf else gate)
    return gate


def _loss(
    folder: Path, graph: OnnxGraph, request: BuildRequest, exact: Exact, jury: Jury, backend: Backend,
    config: BuildConfig, tail: Tail | None,
) -> Interval:  # fmt: skip
    """Of the engine that lies in `folder`; of `graph`, emulated, where engines cannot run."""
    if backend.only_builds():
        with emulated(graph) as session:
            return jury.measure(Segmenter.on_host(session, exact.source.spec, request.tiling))
    kernels = (folder / KERNELS).read_bytes() if backend.on_gpu else None
    with open_on_device(
        backend, (folder / ENGINE).read_bytes(), config=replace(config, model=folder / MODEL, host_code=True),
        spec=exact.source.spec, tiling=request.tiling, kernels=kernels, tail=tail,
    ) as segmenter:  # fmt: skip
        return jury.measure(segmenter)


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


def _draft(
    request: BuildRequest, precision: str, source: Source, backend: Backend, graph: OnnxGraph,
    steps: Sequence[Agreement],
) -> Manifest:  # fmt: skip
    return Manifest(
        spec=source.spec, tiling=request.tiling, precision=precision,
        backend=backend.name, sdk=backend.version(), device=backend.device(),
        input_shape=graph.input_shape, output_shape=graph.output_shape,
        verification=tuple(step.to_json() for step in steps), created="", files={}, batch=request.batch,
        tensorrt=request.tensorrt,
    )  # fmt: skip


def _save(model: ir.Model, path: Path) -> None:
    check(model)
    save(model, path)
