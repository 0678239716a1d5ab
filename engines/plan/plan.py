"""`deploy.py plan`: windows, share of the receptive field, memory and time of a bundle on an image of some size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.bundle import Bundle, open_bundle
from engines.contract import Log
from engines.errors import DeployError
from engines.images.resize import pixels
from engines.plan.measure import machine_of, measure_costs
from engines.plan.predict import Costs, Prediction, predict
from engines.plan.strides import SHARE, StrideShare, choose, read_shares, shares_of
from engines.proof.record import record
from engines.tiling.sizes import Resize

NAMED = (0.5, 0.75, 0.875)  # of the window: 512, 768 and 896 of 1024


@dataclass(frozen=True)
class StridePlan:
    """One stride.  share: None where the bundle's field is not known."""

    prediction: Prediction
    share: float | None

    def to_json(self) -> dict[str, Any]:
        return {**self.prediction.to_json(), "share": self.share}


@dataclass(frozen=True)
class FramePlan:
    """image: (height, width) of the file; a bundle that resizes runs it at the size of the predictions.

    own: of the stride that the bundle was built with.  rows: of that and of others.

    chosen: for the share and the budget, where shares are known.  costs: what all is predicted from.
    """

    bundle: str
    image: tuple[int, int]
    own: StridePlan
    rows: tuple[StridePlan, ...]
    costs: Costs
    chosen: StrideShare | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle, "image": list(self.image), **self.own.to_json(),
            "strides": [row.to_json() for row in self.rows],
            "chosen": None if self.chosen is None else self.chosen.to_json(), "costs": self.costs.to_json(),
        }  # fmt: skip

    def __str__(self) -> str:
        own, (height, width) = self.own.prediction, self.image
        resized = "" if own.size == self.image else f", resized to {own.size[1]}x{own.size[0]}"
        parts = ", ".join(f"{part} {getattr(own, f'{part}_ms'):.0f}" for part in ("gather", "engine", "stitch"))
        lines = [
            f"{'frame':12}{width}x{height}{resized}, {own.windows} window(s): {own.rows} row(s) of {own.columns}",
            f"{'share':12}{_said(self.own.share)}",
            f"{'memory':12}{own.peak_bytes / 1e6:.0f} MB at most, the process as a whole",
            f"{'time':12}{own.frame_ms:.0f} ms: {parts}",
            f"{'from':12}{self.costs.machine}; measured {self.costs.measured}",
            "",
            table(self.rows),
        ]
        if self.chosen is not None:
            lines.append(f"\nbest for this: --stride {self.chosen.stride_h}x{self.chosen.stride_w}")
        return "\n".join(lines)


def table(rows: Sequence[StridePlan]) -> str:
    """Strides side by side."""
    lines = [f"{'stride':>12}{'windows':>9}{'share %':>9}{'ms':>9}{'MB':>7}"]
    for row in rows:
        one = row.prediction
        share = "-" if row.share is None else f"{100 * row.share:.1f}"
        stride = f"{one.stride[0]}x{one.stride[1]}"
        lines.append(f"{stride:>12}{one.windows:>9}{share:>9}{one.frame_ms:>9.0f}{one.peak_bytes / 1e6:>7.0f}")
    return "\n".join(lines)


def plan_bundle(
    folder: Path, size: tuple[int, int], log: Log, threads: int = 0, host_code: bool = False, again: bool = False,
    field: Path | None = None, budget_ms: float | None = None, share: float = SHARE,
) -> FramePlan:  # fmt: skip
    """What `folder` will take on an image of `size` (height, width).  Raises DeployError.

    The costs of its windows are those that it holds for this machine; where it holds none, or for `again`, they are
    measured and kept in it.  field: what receptive-field wrote, where the bundle knows no shares.
    """
    bundle = open_bundle(folder)
    costs = _costs(bundle, log, threads, host_code, again)
    window = (bundle.manifest.tiling.window_h, bundle.manifest.tiling.window_w)
    shares = shares_of(field, window) if field is not None else own_shares(bundle)
    return planned(bundle, costs, shares, size, budget_ms=budget_ms, share=share)


def planned(
    bundle: Bundle, costs: Costs, shares: Sequence[StrideShare], size: tuple[int, int],
    budget_ms: float | None = None, share: float = SHARE,
) -> FramePlan:  # fmt: skip
    """From costs and shares that are at hand.  Raises DeployError where no stride is inside the budget."""
    manifest = bundle.manifest
    own = manifest.tiling

    resize = Resize.parse(manifest.tiling.resize)
    brought_to = size if resize is None else pixels(resize.of(*size))

    def at(stride: tuple[int, int]) -> Prediction:
        tiling = replace(own, stride_h=stride[0], stride_w=stride[1])
        found = predict(costs, tiling, manifest.output_shape, brought_to)
        # The image itself and its mask are there too.
        beside = 0 if resize is None else 5 * size[0] * size[1]
        return replace(found, peak_bytes=found.peak_bytes + beside)

    if budget_ms is not None and not shares:
        raise DeployError(
            f"--budget-ms: bundle {bundle.folder} does not know its receptive field, by which strides are judged; "
            "give --field DIR/receptive-field.json, or build with --stride auto"
        )
    chosen = None
    if shares:
        budget = math.inf if budget_ms is None else budget_ms
        chosen = choose(shares, share, lambda stride: at(stride).frame_ms, budget)
    named = {(max(1, int(own.labelled[0] * part)), max(1, int(own.labelled[1] * part))) for part in NAMED}
    mine = (own.stride_h, own.stride_w)
    strides = sorted({*named, mine, *([chosen.stride] if chosen else [])})
    rows = tuple(StridePlan(at(stride), _share(shares, stride)) for stride in strides)
    return FramePlan(
        str(bundle.folder), size, StridePlan(at(mine), _share(shares, mine)), rows=rows, costs=costs, chosen=chosen
    )


def own_shares(bundle: Bundle) -> tuple[StrideShare, ...]:
    """Those that the bundle was built with; () where nobody asked.  Raises DeployError."""
    rows = bundle.report().get("strides")
    return () if rows is None else read_shares(rows, f"bundle {bundle.folder}")


def _costs(bundle: Bundle, log: Log, threads: int, host_code: bool, again: bool) -> Costs:
    manifest = bundle.manifest
    if manifest.costs and not again:
        costs = Costs.from_json(manifest.costs)
        if (costs.machine, costs.batch) == (machine_of(manifest, threads), manifest.batch):
            return costs
    costs = measure_costs(bundle.folder, manifest, threads, host_code)
    manifest = open_bundle(bundle.folder).manifest  # its first run here may have been a proof
    reason = record(bundle.folder, manifest, replace(manifest, costs=costs.to_json()))
    log("costs", f"measured on two windows; {'kept in the bundle' if reason is None else f'not kept ({reason})'}")
    return costs


def _share(shares: Sequence[StrideShare], stride: tuple[int, int]) -> float | None:
    return next((each.share for each in shares if each.stride == stride), None)


def _said(share: float | None) -> str:
    if share is None:
        return "not known; build with --stride auto, or give --field DIR/receptive-field.json"
    return f"{100 * share:.1f} % of its receptive field's energy is in the window of the worst interior pixel"
