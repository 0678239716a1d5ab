"""What a comparison is made of, as it is written to compare.json and read back from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.measure.bench import Stats, Timing
from engines.tiling.device import PARTS
from pipeline.compare.agreement import MapAgreement

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One precision on one backend.

    reference: what labels are compared with.  baseline: PyTorch on the GPU, measured beside the others for its time,
    not judged and never shipped.
    folder: where its bundle lies in the output, "" if there is none.  executed: share of the layers' time by the type
    that they really ran in.  bytes: of the engine.  miou, pixel_accuracy, class_iou: 0..1 in the data's classes, None
    without labels.  agreement: with the reference's labels, in the model's classes.  speedup: the median frame
    time of the comparison's yardstick over this one's.  peak_bytes: of a process that does nothing else.
    windows, frame_size: of one frame, (height, width) in pixels.
    passed, reasons: whether it was built, ran and stayed within the limits, and if not, why not.
    """

    model: str
    precision: str
    backend: str
    reference: bool = False
    baseline: bool = False
    folder: str = ""
    sdk: str = ""
    device: str = ""
    manifest_sha256: str = ""
    executed: Mapping[str, float] = field(default_factory=dict)
    bytes: int | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    class_iou: tuple[float | None, ...] | None = None
    agreement: MapAgreement | None = None
    timing: Timing | None = None
    windows: int | None = None
    frame_size: tuple[int, int] | None = None
    speedup: float | None = None
    peak_bytes: int | None = None
    load_ms: float | None = None
    verification: tuple[Mapping[str, Any], ...] = ()
    log: tuple[tuple[str, str], ...] = ()
    passed: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.precision} {self.backend}".strip()

    @property
    def judged(self) -> bool:
        """Whether it is a candidate, not one of those that candidates are held against."""
        return not (self.reference or self.baseline)

    @property
    def measured(self) -> bool:
        return self.timing is not None

    def to_json(self) -> dict[str, Any]:
        """Flat where scripts look: label_agreement, engine_ms and frame_ms (each p50, p95) beside the rest."""
        body = asdict(self)
        agreement, _ = body.pop("agreement"), body.pop("timing")
        for key in ("labels", "edges", "seams", "by_class"):
            name = {"labels": "label", "edges": "edge", "seams": "seam", "by_class": "class"}[key]
            body[f"{name}_agreement"] = None if agreement is None else agreement[key]
        for part in ("frame", *PARTS):
            body[f"{part}_ms"] = None if self.timing is None else getattr(self.timing, part).to_json()
        body["frame_size"] = None if self.frame_size is None else list(self.frame_size)
        return body

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        body = dict(data)
        labels, edges, seams, by_class = (body.pop(f"{name}_agreement") for name in ("label", "edge", "seam", "class"))
        times = {part: body.pop(f"{part}_ms") for part in ("frame", *PARTS)}
        if labels is not None:
            body["agreement"] = MapAgreement(labels, edges, seams, tuple(by_class))
        if body["windows"] is not None:
            body["timing"] = Timing(**{k: Stats(**v) for k, v in times.items()})
            body["frame_size"] = tuple(body["frame_size"])
        if body["class_iou"] is not None:
            body["class_iou"] = tuple(body["class_iou"])
        body["log"] = tuple((step, text) for step, text in body["log"])
        return cls(**{**body, "verification": tuple(body["verification"]), "reasons": tuple(body["reasons"])})


@dataclass(frozen=True)
class Comparison:
    """Every row, the reference first, with all that is needed to read and to repeat them.

    classes: the model's, in which agreement is counted.  data_classes: those of the labels, for mIoU.
    data: path, sha256 of its files, images, labelled.  machine, versions: see engines.measure.bench.settings.
    ship: the name of the row to ship, or None.  verdict: one line that says which and why.
    """

    model: str
    model_sha256: str
    classes: tuple[str, ...]
    data_classes: tuple[str, ...]
    tiling: Mapping[str, Any]
    data: Mapping[str, Any]
    limits: Mapping[str, Any]
    rounds: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str
    rows: tuple[Row, ...]
    ship: str | None = None
    verdict: str = ""

    @property
    def reference(self) -> Row:
        return self.rows[0]

    @property
    def candidates(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.judged)

    @property
    def failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.reasons)

    @property
    def yardstick(self) -> Row:
        """What speed-ups are counted from: PyTorch on the device that engines run on."""
        return yardstick(self.rows)

    @property
    def labelled(self) -> bool:
        return self.reference.miou is not None

    @property
    def passed(self) -> bool:
        """Whether every precision that was asked for passes."""
        return all(row.passed for row in self.candidates)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **vars(self), "rows": [row.to_json() for row in self.rows], "passed": self.passed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Inverse of `to_json`.  Raises DeployError."""
        body = dict(data)
        if body.pop("schema", None) != SCHEMA:
            raise DeployError(f"comparison: got schema {data.get('schema')!r}, expected {SCHEMA}; compare again")
        body.pop("passed", None)
        try:
            for key in ("classes", "data_classes"):
                body[key] = tuple(body[key])
            body["rows"] = tuple(Row.from_json(row) for row in body["rows"])
            return cls(**body)
        except (KeyError, TypeError, ValueError) as error:
            raise DeployError(f"comparison: {error!r} while reading it; compare again") from error


def yardstick(rows: Sequence[Row]) -> Row:
    """The first baseline that was measured, else the reference: never the CPU's time where a GPU was compared."""
    return next((row for row in rows if row.baseline and row.measured), rows[0])


def drop(reference: Row, row: Row) -> float | None:
    """Percentage points of mIoU that `row` loses against the reference, negative for a gain; None without labels."""
    if reference.miou is None or row.miou is None:
        return None
    return 100 * (reference.miou - row.miou)


def percent(share: float | None) -> str:
    """Two digits, and 100 only for all: what rounds to it without being it is ``>99.99``."""
    if share is None or share == 1:
        return "-" if share is None else "100"
    return ">99.99" if share >= 0.99995 else f"{100 * share:.2f}"


def class_changes(comparison: Comparison, row: Row) -> list[tuple[str, float]]:
    """(class, points of IoU gained or lost against the reference), the worst first.

    With labels the IoU is that with the truth.  Without, it is that with the reference's own masks, so that every
    change is a loss.  Classes that occur nowhere are left out.
    """
    if comparison.labelled and row.class_iou is not None:
        names, before, after = comparison.data_classes, comparison.reference.class_iou or (), row.class_iou
    elif not comparison.labelled and row.agreement is not None:
        names, after = comparison.classes, row.agreement.by_class
        before = (1.0,) * len(names)
    else:
        return []
    pairs = zip(names, before, after, strict=True)
    changes = [(name, 100 * (b - a)) for name, a, b in pairs if a is not None and b is not None]
    return sorted(changes, key=lambda change: change[1])


def read(path: Path) -> Comparison:
    """Read a compare.json.  Raises DeployError."""
    try:
        return Comparison.from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DeployError(f"comparison {path}: cannot be read ({error}); compare again") from error
