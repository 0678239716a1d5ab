"""Several windows a run: what a graph must be for that, and the gate that every such engine passes first.

TensorRT's engines of SegFormer are silently wrong beyond the first item of a batch (NVIDIA/TensorRT issue 4853).  So an
engine of N windows is used only after it answered, on the very device, N different windows as an engine of one window
answers each of them alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.bundle import MAX_BATCH
from engines.contract import Backend, BuildConfig, Float32, Log
from engines.errors import DeployError, GateError
from engines.proof.agreement import Agreement, Gate, compare_logits
from engines.proof.golden import Golden, windows_of
from engines.segmenter import Segmenter

STEP = "batch"  # of the agreement, of the log, and in report.json
NEUTRAL = "any number of windows"  # the pass over the graph, in its history

# Tighter than the gates against the checkpoint, which allow for rounding to the precision: here both engines make the
# same roundings of the same numbers on one device, and differ by the order of their sums alone.
GATES = {
    "fp32": Gate(1e-4, 0.9999, ties=1e-4),
    "fp16": Gate(5e-3, 0.999, ties=5e-3),
    "bf16": Gate(5e-2, 0.995, ties=5e-2),
    "int8": Gate(1e-1, 0.99, ties=1e-1),
    "fp8": Gate(1e-1, 0.99, ties=1e-1),
}


def require_neutral(history: Iterable[Mapping[str, Any]], batch: int) -> None:
    """Raises DeployError unless a graph with this history (as in report.json) can take `batch` windows."""
    if not 1 <= batch <= MAX_BATCH:
        raise DeployError(f"--batch: got {batch}, expected 1 to {MAX_BATCH}")
    if batch == 1:
        return
    steps = [step for step in history if step.get("rule") == NEUTRAL]
    if not steps:
        raise DeployError(f"--batch {batch}: the bundle's graph takes one window at a time; build it from its model")
    if steps[-1].get("declined"):
        raise DeployError(
            f"--batch {batch}: the graph takes one window at a time ({steps[-1]['declined']}); build with --batch 1"
        )


def compare_batch(
    opened: Callable[[bytes, BuildConfig], AbstractContextManager[Segmenter]], backend: Backend, model: Path,
    blob: bytes, config: BuildConfig, golden: Golden, log: Log,
) -> list[Agreement]:  # fmt: skip
    """Compare the engine `blob` of config.batch windows with one of a single window, compiled here for that.

    opened: loads an engine on the device.  Returns what was found, nothing for a batch of one.
    Raises GateError that names the first window of the batch that is not what it is alone.
    """
    count = config.batch
    if count == 1:
        return []
    with opened(blob, config) as segmenter:
        windows = different(windows_of(golden.image, segmenter.spec, segmenter.tiling), count)
        together = segmenter.session.run(np.concatenate(windows)).copy()
    begin, single = time.perf_counter(), replace(config, batch=1)
    reference = backend.build(model, single)
    log(STEP, f"an engine of 1 window to compare with, in {time.perf_counter() - begin:.1f} s")
    with opened(reference, single) as segmenter:
        alone = np.concatenate([segmenter.session.run(window).copy() for window in windows])
    gate = GATES[config.precision]
    for item in range(count):
        one = slice(item, item + 1)
        _require(backend, f"batch: window {item + 1} of {count}", got=together[one], alone=alone[one], gate=gate)
    found = compare_logits(STEP, together, f"{count} single runs", alone, gate)
    verb = "equal" if not found.max_abs else "agree with"
    log(STEP, f"{count} windows at once {verb} {count} single runs: {found}")
    return [found]


def reported(agreements: Iterable[Agreement], config: BuildConfig) -> dict[str, Any]:
    """For report.json: how the batch was verified; nothing for a batch of one."""
    found = [agreement.to_json() for agreement in agreements if agreement.step == STEP]
    body = {"windows": config.batch, "gate": GATES[config.precision].to_json(), "agreements": found}
    return {STEP: body} if config.batch > 1 else {}


def different(windows: Sequence[Float32], count: int) -> list[Float32]:
    """`count` inputs (1, 3, h, w), no two alike: the given ones, then mirrored, shifted and fainter ones."""
    made = []
    for index in range(count):
        window, turn = windows[index % len(windows)], index // len(windows)
        window = window[:, :, :: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]
        window = np.roll(window, (5 * (turn // 4), 11 * (turn // 4)), axis=(2, 3))
        made.append(np.ascontiguousarray(window * np.float32(1 - index / (2 * count)), np.float32))
    return made


def _require(backend: Backend, step: str, got: Float32, alone: Float32, gate: Gate) -> None:
    try:
        compare_logits(step, got, "the same window alone", alone, gate).require(gate)
    except GateError as error:
        known = ", as TensorRT is known for (NVIDIA/TensorRT issue 4853)" if backend.name.startswith("tensorrt") else ""
        raise GateError(f"{error}, on {backend.device()}{known}; build with --batch 1") from error
