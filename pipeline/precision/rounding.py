"""Learned rounding: each weight up or down, so that the layer's output is kept rather than the weight itself.

The objective is that of AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML
2020, arXiv 2004.10568, section 3): with the second moment G = E[x^T x] of what a layer reads, the error of its output
is tr((Wq - W)^T G (Wq - W)), over all Wq whose entries are W / scale rounded down or up.  AdaRound relaxes the choice
and takes gradient steps; here each entry in turn is flipped if that lowers the error, until none does, which needs no
step size, no annealing and no torch, and never ends above rounding to the nearest.  On five layers of cgnet it ends
within 1 % of 500 Adam steps of AdaRound's relaxation, in a tenth of the time.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.ranges.ranges import Ranges
from engines.contract import Float32, Log
from engines.files import replacing
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph
from pipeline.graph.surgery import constant, output_name
from pipeline.precision.evidence import Evidence
from pipeline.precision.layer_rows import from_matrix, matrix
from pipeline.precision.plan import PrecisionPlan
from pipeline.precision.plan_int8 import scale_axis, weight_axis
from pipeline.precision.quantise import Int8, dequantise, quantise, weight_scales

SWEEPS = 20  # at most; two to six are usual
BLOCK = 64  # entries of a column that are visited between two updates of all others
SAVE_EVERY_S = 10.0
F64 = NDArray[np.float64]
Learned = Mapping[str, Int8]  # by the name of the weight


@dataclass(frozen=True)
class Rounding:
    """One quantised layer, named by its first output.

    declined: why it is rounded to the nearest, or ``""``.  before, after: relative squared error of its output, on
    rows that were not learned from.  flipped: share of its weights that are not the nearest.
    """

    output: str
    declined: str = ""
    before: float = 0.0
    after: float = 0.0
    flipped: float = 0.0


def learn_rounding(
    graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, evidence: Evidence, stored: str = "fp32",
    state: Path | None = None, log: Log = lambda step, text: None,
) -> tuple[Learned, tuple[Rounding, ...]]:  # fmt: skip
    """int8 weights for `lower_int8`, of the layers whose error they lower, and what was done to each layer.

    state: a file that is kept while this runs, from which a later call with the same arguments continues.
    """
    layers = [node for node in graph.model.graph if plan.eight_bit(output_name(node))]
    done = _Done(state, _identity(graph, plan, ranges, evidence, stored), log)
    learned: dict[str, Int8] = {}
    report = []
    for node in layers:
        name = output_name(node)
        if len(node.inputs[1].uses()) > 1:  # type: ignore[union-attr]
            report.append(Rounding(name, "its weight is also another layer's"))
            continue
        values = done.get(name)
        if values is None:
            with done.kept_if_interrupted():
                values = done.put(name, _rounded(node, scale_axis(node, plan), evidence.fitted[name], stored))
        item = _judged(node, scale_axis(node, plan), values, ranges, evidence=evidence, stored=stored)
        report.append(item)
        if not item.declined:
            learned[str(node.inputs[1].name)] = values  # type: ignore[union-attr]
    done.finish()
    return learned, tuple(report)


def _judged(node: ir.Node, axis: int | None, values: Int8, ranges: Ranges, evidence: Evidence, stored: str) -> Rounding:
    amax = ranges.tensors[str(node.inputs[0].name)].amax  # type: ignore[union-attr]
    weight = _weight(node)
    scales = weight_scales(weight, axis, stored)
    nearest = quantise(weight, scales, axis)
    before, after = (evidence.error(node, amax, stored, dequantise(q, scales, axis)) for q in (nearest, values))
    changed = float(np.mean(values != nearest))
    return Rounding(output_name(node), "" if after < before else "it lowers no error", before, after, flipped=changed)


def _weight(node: ir.Node) -> Float32:
    weight = constant(node.inputs[1])
    assert weight is not None, "only layers with constant weights are quantised"
    return weight.astype(np.float32)


def _rounded(node: ir.Node, axis: int | None, x: Float32, stored: str) -> Int8:
    weight = _weight(node)
    scales = weight_scales(weight, axis, stored)
    along = [1] * weight.ndim
    if axis is not None:
        along[axis % weight.ndim] = -1
    ratio = matrix(node, (weight / scales.reshape(along)).astype(np.float64))
    nearest = matrix(node, quantise(weight, scales, axis)).astype(np.float64)
    each = np.broadcast_to(scales, weight.shape[weight_axis(node)])  # one an output, also where it is one for all
    step = each.astype(np.float64).reshape(len(ratio), -1)
    values = [descend(moment(x[g]), ratio[g], nearest[g], step[g]) for g in range(len(ratio))]
    result: Int8 = from_matrix(node, np.stack(values), weight.shape).astype(np.int8)
    return result


def moment(x: Float32) -> F64:
    """E[x^T x] of rows x (n, d): (d, d)."""
    wide = x.astype(np.float64)
    return np.asarray(wide.T @ wide / len(wide))


def descend(second: F64, ratio: F64, start: F64, step: F64) -> F64:
    """The rounding of `ratio` (d, outputs), each entry down or up, at which no single flip lowers the error.

    second: (d, d).  start: where to begin, a rounding of `ratio`.  step: (outputs,) the scale of each column.
    """
    values, low = start.copy(), np.floor(ratio)
    # Whole numbers, zeros above all, have one rounding; so has what is clipped at the end of int8.
    low[(ratio == low) | (start < low) | (start > low + 1) | (low < -128) | (low > 126)] = np.nan
    slope = second @ ((values - ratio) * step)  # half the gradient
    for _ in range(SWEEPS):
        flips = 0
        for begin in range(0, len(second), BLOCK):
            block = slice(begin, min(begin + BLOCK, len(second)))
            change = _sweep(second[block, block], values[block], low[block], slope[block].copy(), step)
            flips += int(np.count_nonzero(change))
            values[block] += change
            slope += second[:, block] @ (change * step)
        if not flips:
            break
    return values


def _sweep(second: F64, values: F64, low: F64, slope: F64, step: F64) -> F64:
    """Entries of one block, first to last, each flipped in all columns where that lowers the error: the changes."""
    change = np.zeros_like(values)
    for i in range(len(second)):
        other = np.where(values[i] > low[i], -1.0, 1.0) * step
        gain = 2 * other * slope[i] + other * other * second[i, i]
        flip = (gain < 0) & np.isfinite(low[i])
        if flip.any():
            moved = np.where(flip, other, 0.0)
            slope += np.outer(second[:, i], moved)
            change[i] = np.where(flip, np.sign(other), 0.0)
    return change


def _identity(graph: OnnxGraph, plan: PrecisionPlan, ranges: Ranges, evidence: Evidence, stored: str) -> str:
    digest = hashlib.sha256(json.dumps([plan.to_json(), ranges.to_json(), stored, SWEEPS]).encode())
    for rows in evidence.fitted.values():
        digest.update(rows.tobytes())
    return f"{graph_sha256(graph.model)} {digest.hexdigest()}"


class _Done:
    """The layers that are done, kept in a file where there is one.  identity: what they were made from."""

    def __init__(self, path: Path | None, identity: str, log: Log) -> None:
        self._path, self._identity, self._log, self._saved = path, identity, log, time.monotonic()
        self._values: dict[str, Int8] = {}
        if path is not None and path.exists():
            reason = self._read(path)
            log("resume", f"{path}: {reason or f'continued after {len(self._values)} layer(s)'}")

    def _read(self, path: Path) -> str:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                if str(data["identity"]) != self._identity:
                    return "not used, it is of another model, data set or option; starting over"
                names = [str(name) for name in data["names"]]
                self._values = {name: data[f"values.{index}"] for index, name in enumerate(names)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            return f"not used, it is damaged ({' '.join(str(error).split())[:80]}); starting over"
        return ""

    def get(self, name: str) -> Int8 | None:
        return self._values.get(name)

    def put(self, name: str, values: Int8) -> Int8:
        self._values[name] = values
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self._save()
        return values

    @contextmanager
    def kept_if_interrupted(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self._save()
            if self._path is not None:
                self._log("interrupted", f"give the same command again to continue from {self._path}")
            raise

    def _save(self) -> None:
        if self._path is not None:
            arrays: dict[str, NDArray[Any]] = {
                "identity": np.array(self._identity),
                "names": np.array(list(self._values)),
            }
            arrays |= {f"values.{index}": array for index, array in enumerate(self._values.values())}
            with replacing(self._path, "rounding state") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # a key of ours is never allow_pickle
            self._saved = time.monotonic()

    def finish(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
