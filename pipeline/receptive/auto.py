"""`--stride auto`: the windows of a build are chosen by how far its model sees, and by what they cost here."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engines.bundle import Bundle, Manifest, check_target, open_bundle, writing
from engines.contract import Log
from engines.errors import DeployError
from engines.guard.ledger import ledger
from engines.plan.measure import measure_costs
from engines.plan.plan import NAMED, planned, table
from engines.plan.predict import Costs
from engines.plan.strides import SHARE, choose
from engines.proof.record import record
from pipeline.build import build_bundle
from pipeline.receptive.study import FieldRequest, measured
from pipeline.receptive.windows import stride_shares
from pipeline.request import BuildRequest

WINDOWS = 4  # that the field is averaged over


@dataclass(frozen=True)
class AutoStride:
    """share: of the field's energy that the window of the worst interior pixel has to hold.

    size: (height, width) of the images that time and windows are told for, or None.  budget_ms: that one of them may
    take; needs the size.  data: photographs to measure the field on; None renders scenes.
    """

    share: float = SHARE
    size: tuple[int, int] | None = None
    budget_ms: float | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.budget_ms is not None and self.size is None:
            raise DeployError(
                f"--budget-ms {self.budget_ms:g}: got no --size WxH, expected the size of the images that may take so "
                "long; give both"
            )


def build_at_best(request: BuildRequest, auto: AutoStride, log: Log) -> Manifest:
    """As `build_bundle`, at the stride that `auto` asks for.  Raises DeployError or GateError; then nothing is written.

    With a size the engine is built, timed, and, where its windows turn out too many for the budget, built again with
    fewer.
    """
    check_target(request.output)
    request = at_best(request, auto, log)
    if auto.size is None:
        return build_bundle(request, log)
    with _trial(request.output) as trial:
        build_bundle(replace(request, output=trial), log)
        bundle = open_bundle(trial)
        costs = measure_costs(trial, bundle.manifest, request.threads)
        stride = _settled(request, auto, bundle, costs, log)
        if stride != (request.tiling.stride_h, request.tiling.stride_w):
            tiling = replace(request.tiling, stride_h=stride[0], stride_w=stride[1])
            log("stride", f"{stride[0]}x{stride[1]} in its place; built again with it")
            build_bundle(replace(request, tiling=tiling, output=trial), log)
        manifest = open_bundle(trial).manifest
        known = replace(manifest, costs=costs.to_json())
        reason = record(trial, manifest, known)
        assert reason is None, reason
        with writing(request.output) as folder:
            for path in sorted(trial.iterdir()):
                os.replace(path, folder / path.name)
    return known


def at_best(request: BuildRequest, auto: AutoStride, log: Log) -> BuildRequest:
    """The same with the largest stride that keeps the share, and what every stride would.  Raises DeployError.

    Where none keeps it but there is a budget, the densest that is tried: the budget decides.
    """
    tiling = request.tiling
    asked = FieldRequest(
        request.model, tiling, auto.data, windows=WINDOWS, threads=request.threads, options=request.options,
        max_pixels=request.max_pixels,
    )  # fmt: skip
    shares = stride_shares(measured(asked, log, stages=False).output)
    named = [each for each in shares if each.stride in {_part(tiling.window_h, tiling.window_w, p) for p in NAMED}]
    for each in named:
        log("stride", f"{each.stride_h}x{each.stride_w} keeps {100 * each.share:.1f} % of the receptive field")
    if auto.budget_ms is not None and all(each.share < auto.share for each in shares):
        best = shares[0]
    else:
        best = choose(shares, auto.share)
    log("stride", f"auto: {best.stride_h}x{best.stride_w}, {100 * best.share:.1f} % of {100 * auto.share:g} % asked")
    tiling = replace(tiling, stride_h=best.stride_h, stride_w=best.stride_w)
    return replace(request, tiling=tiling, strides=tuple(shares))


def _settled(request: BuildRequest, auto: AutoStride, bundle: Bundle, costs: Costs, log: Log) -> tuple[int, int]:
    """What the clock says to the stride; logs the table."""
    assert auto.size is not None
    budget = auto.budget_ms
    plan = planned(bundle, costs, request.strides, auto.size, budget_ms=budget, share=auto.share)
    for line in table(plan.rows).splitlines():
        log("plan", line)
    return (request.tiling.stride_h, request.tiling.stride_w) if plan.chosen is None else plan.chosen.stride


def _part(height: int, width: int, part: float) -> tuple[int, int]:
    return max(1, int(height * part)), max(1, int(width * part))


@contextmanager
def _trial(output: Path) -> Iterator[Path]:
    """A place beside `output`, where its timing cache lies too; gone afterwards."""
    trial = output.absolute().with_name(f".{output.name}.{secrets.token_hex(6)}")
    with ledger.temporary(trial):
        try:
            yield trial
        finally:
            shutil.rmtree(trial, ignore_errors=True)
