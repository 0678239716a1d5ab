"""Whether a bundle's engine ends before the decoder's tail, and the proof that both together are the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from engines.contract import Backend, Float32, Log, pack
from engines.proof.agreement import OPTIONS, Agreement, Gate, compare_logits
from engines.tiling.tail import Tail
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, Step, open_onnx
from pipeline.graph.tail.cut import cut
from pipeline.graph.tail.ending import NAME, DecoderTail, find

STEP = "tail"  # of the log and of the manifest's verification


@dataclass(frozen=True)
class Cut:
    """model: the graph without its tail.  step: for the history.  proof: of the logits of both."""

    model: ir.Model
    tail: Tail
    step: Step
    proof: Agreement


def suits(backend: Backend) -> bool:
    """A GPU that is given the graph: bytes decide there.  On a CPU it has not won, see benchmarks/tail.py."""
    return backend.on_gpu and not backend.from_program


def ending_for(backend: Backend, exact: OnnxGraph, wanted: bool) -> DecoderTail | None:
    """Where engines for `backend` end, of graphs lowered from `exact`; None at the logits."""
    found = find(exact) if wanted and suits(backend) else ""
    return None if isinstance(found, str) else found


def before_tail(lowered: OnnxGraph, ending: DecoderTail | None) -> ir.Model:
    """What an engine is compiled from; all of it where the tail cannot be cut off in these types."""
    made = "" if ending is None else cut(lowered, ending, lowered)
    return lowered.model if isinstance(made, str) else made


def cut_tail(
    exact: OnnxGraph, lowered: OnnxGraph, neutral: OnnxGraph, windows: Sequence[Float32], reference: Float32,
    gate: Gate, threshold: float | None, log: Log,
) -> Cut | None:  # fmt: skip
    """The graph `neutral` without its tail, or None where it has none that can be cut, which the log then says.

    exact: the fp32 graph that the weights are taken from.  lowered: the same in the bundle's precision, with types;
    neutral: after it was made one for any number of windows.  reference: logits (M, K, h, w) for the `windows`.
    Raises GateError unless the maps, every tensor rounded to its type, and the tail give the logits inside `gate`.
    """
    ending = find(exact)
    made = ending if isinstance(ending, str) else cut(neutral, ending, lowered)
    if isinstance(made, str) or isinstance(ending, str):
        log(STEP, f"left in the engine: {made}")
        return None
    tail = ending.tail
    logits = _logits(emulate(lowered), ending, windows)
    proof = compare_logits(STEP, logits, "the fp32 graph", reference, gate, threshold)
    proof.require(gate, OPTIONS)
    itemsize = made.graph.outputs[0].dtype.itemsize  # type: ignore[union-attr]
    log(
        STEP,
        f"the engine ends in {len(ending.maps)} maps, of which a kernel makes the logits, in "
        f"{tail.shape.macs / 1e9:.2f} GMAC and {tail.shape.bytes(int(itemsize)) / 1e6:.1f} MB a window: fewer bytes "
        f"than in the engine; `bench` with and without --tail says which is faster here; {proof}",
    )
    return Cut(made, tail, Step(NAME, len(made.graph), places=1), proof)


def _logits(rounded: OnnxGraph, ending: DecoderTail, windows: Sequence[Float32]) -> Float32:
    model = cut(rounded, ending, rounded)
    assert not isinstance(model, str), "in an emulated graph every tensor is float32"
    session = open_onnx(model)
    name, outputs = session.get_inputs()[0].name, sorted(output.name for output in session.get_outputs())
    return np.concatenate([ending.tail.logits(pack(session.run(outputs, {name: x})), 1) for x in windows])
