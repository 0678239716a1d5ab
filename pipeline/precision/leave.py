"""Which layers an INT8 build that fails its gate should leave in higher precision: what each costs by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from calib.ranges.ranges import Ranges
from engines.contract import Float32, Log
from engines.errors import DeployError, GateError
from engines.proof.agreement import compare_logits
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.precision.blocks import Block, blocks_of
from pipeline.precision.lower import prepare_int8
from pipeline.precision.lower_int8 import lower_int8
from pipeline.precision.plan import EIGHT_BIT, PrecisionPlan
from pipeline.precision.plan_int8 import plan_int8
from pipeline.precision.smooth import smooth
from pipeline.request import LowerOptions

Made = TypeVar("Made")

NAMED = 4  # blocks in a message
TO = ".."  # between the first layer of a block and its last


@dataclass(frozen=True)
class Contribution:
    """One block in INT8 and everything else in fp32.  error: rms of the logits' difference over their spread."""

    name: str
    layers: tuple[str, ...]
    error: float


def contributions(
    graph: OnnxGraph, ranges: Ranges, options: LowerOptions, window: Float32, reference: Float32
) -> list[Contribution]:
    """Of every block, the largest first.  reference: fp32 logits (1, K, h, w) of `window`."""
    origin = prepare_int8(graph, "fp32")
    whole = plan_int8(origin, ranges, options.rest, options.int8)
    blocks = blocks_of(origin, whole)
    current, measured = smooth(origin, whole, ranges)[:2] if options.smooth else (origin, ranges)

    def error(block: Block) -> float:
        lowered = lower_int8(current, _only(whole, block.layers), measured, "fp32")
        return compare_logits("int8", run_onnx(lowered, [window]), "the fp32 graph", reference).noise or 0.0

    found = [Contribution(block.name, block.layers, error(block)) for block in blocks]
    return sorted(found, key=lambda each: each.error, reverse=True)


def leaving(
    failed: GateError, attempt: Callable[[LowerOptions], Made], ordered: Sequence[Contribution], options: LowerOptions,
    log: Log,
) -> tuple[Made, Sequence[Contribution]]:  # fmt: skip
    """The first that passes of attempts without the 1, 2, 4, ... worst blocks, and which those are.

    Raises GateError if none does.
    """
    count = 1
    while count < len(ordered):
        left = ordered[:count]
        log("int8", f"{failed}; next without {', '.join(each.name for each in left)}")
        skip = (*options.int8.skip, *(layer for each in left for layer in each.layers))
        try:
            return attempt(replace(options, int8=replace(options.int8, skip=skip))), left
        except GateError as error:
            failed, count = error, 2 * count
    raise failed


def advice(ordered: Sequence[Contribution]) -> str:
    """What the user can leave out, in the words of the command line."""
    worst = [each for each in ordered if each.error > 0][:NAMED]
    named = ", ".join(f"--skip {each.name} ({100 * each.error:.2g} % of the spread by itself)" for each in worst)
    return f"leave the layers out that cost most: {named}; or --max-drop P lets the build leave them" if named else ""


def expanded(graph: OnnxGraph, ranges: Ranges, options: LowerOptions) -> tuple[str, ...]:
    """First outputs of the layers that `--skip` names: each alone, or FIRST..LAST.  Raises DeployError."""
    origin = prepare_int8(graph, "fp32")
    bare = replace(options.int8, skip=())
    plan = plan_int8(origin, ranges, options.rest, bare)
    layers = [node.output for node in plan.nodes if node.precision in EIGHT_BIT]
    found: list[str] = []
    for name in options.int8.skip:
        first, last = (name, name) if name in layers else name.partition(TO)[::2]
        if first not in layers or last not in layers or layers.index(first) > layers.index(last):
            raise DeployError(
                f"--skip {name}: got no layer of that name that {bare.kind} takes, expected LAYER or FIRST{TO}LAST "
                f"such as {', '.join(layers[:3])}"
            )
        found += layers[layers.index(first) : layers.index(last) + 1]
    return tuple(found)


def _only(plan: PrecisionPlan, layers: Collection[str]) -> PrecisionPlan:
    out = {node.output for node in plan.nodes if node.precision in EIGHT_BIT} - set(layers)
    nodes = (replace(node, precision="fp32") if node.output in out else node for node in plan.nodes)
    return PrecisionPlan(plan.target, tuple(nodes))
