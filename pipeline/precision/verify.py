"""The gate after each lowering: the lowered graph, really rounded, against the graph it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.contract import Float32
from engines.errors import GateError
from engines.proof.agreement import OPTIONS, Agreement, Gate, compare_logits
from engines.proof.stress import STEP as STRESS
from engines.proof.stress import compare_stress, on_stress
from pipeline.graph.emulate import emulate
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.surgery import is_float
from pipeline.precision.extremes import tensors


@dataclass(frozen=True)
class Stress:
    """Stress inputs (see `engines.proof.stress`), (1, 3, h, w) each, and a grid of the fp32 logits for all of them."""

    windows: Sequence[Float32]
    logits: Float32


@dataclass(frozen=True)
class Divergence:
    """The first tensor that is no longer what it was.  error: rms of the difference over rms of the reference."""

    tensor: str
    op: str
    error: float
    before: float

    def __str__(self) -> str:
        if not np.isfinite(self.error):
            return f"first divergence: {self.tensor} ({self.op}) becomes infinite or NaN"
        return f"first divergence: {self.tensor} ({self.op}), relative error {self.error:.2g} after {self.before:.2g}"


def verify_lowered(
    step: str, lowered: OnnxGraph, windows: Sequence[Float32], reference_name: str, reference: Float32, gate: Gate,
    origin: OnnxGraph, stress: Stress | None = None, threshold: float | None = None,
) -> tuple[Agreement, ...]:  # fmt: skip
    """Raise GateError, naming the first tensor that diverges from `origin`, unless the logits stay inside `gate`.

    reference: logits (M, K, h, w) of `origin` for the M `windows`.  stress: what they are on stress inputs; of those
    the mosaic is run, which shows a part of each of the others.
    """
    rounded, at = emulate(lowered), windows[0]
    try:
        agreement = compare_logits(step, run_onnx(rounded, list(windows)), reference_name, reference, gate, threshold)
        agreement.require(gate, OPTIONS)
        if stress is None:
            return (agreement,)
        at = stress.windows[0]
        got = run_onnx(rounded, [at])
        return agreement, compare_stress(
            f"{step} {STRESS}", [got], reference_name, stress.logits, on_stress(gate, step), threshold
        )
    except GateError as error:
        found = first_divergence(origin, rounded, at)
        raise GateError(f"{error}; {found}" if found else str(error)) from error


# Rounding alone stays well below: measured on SegFormer-B0, the worst tensor has 0.02 in bf16 and 0.1 in int8.
DIVERGED = 0.25


def first_divergence(origin: OnnxGraph, rounded: OnnxGraph, window: Float32) -> Divergence | None:
    """Walk the tensors that both graphs have, in graph order, in bounded memory.

    Returns the first that is infinite or off by more than DIVERGED, else the one at which the error grows most.
    """
    there = {value.name for node in rounded.model.graph for value in node.outputs}
    ops = {
        str(value.name): node.op_type
        for node in origin.model.graph
        for value in node.outputs
        if is_float(value) and value.name in there
    }
    worst: Divergence | None = None
    before = 0.0
    # Lowering keeps the order of the nodes, so both walks name the same tensors.
    for (name, wanted), (_, got) in zip(tensors(origin, window, ops), tensors(rounded, window, ops), strict=True):
        endless = ~np.isfinite(wanted)  # attention's masks are, where they close
        if np.array_equal(wanted[endless], got[endless]):
            wanted, got = np.where(endless, 0, wanted), np.where(endless, 0, got)
        with np.errstate(over="ignore", invalid="ignore"):
            size = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64))))
            error = float(np.sqrt(np.mean(np.square(got.astype(np.float64) - wanted)))) / max(size, 1e-30)
        found = Divergence(name, ops[name], error, before)
        if not np.isfinite(error) or error > DIVERGED:
            return found
        if worst is None or error - before > worst.error - worst.before:
            worst = found
        before = max(before, error)
    return worst
