"""What a comparison is made of, as it is written to compare.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engines.measure.bench import Timing
from engines.tiling.device import PARTS
from pipeline.compare.tally import MapAgreement

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One precision on one backend.

    reference: what labels are compared with.  baseline: PyTorch on the GPU, measured beside the others for its time,
    not judged and never shipped.  views: of a row that shows what several views of an image gain, which ones
    (`ImageViews`); it is not judged either.
    folder: where its bundle lies in the output, "" if there is none.  executed: share of the layers' time by the type
    that they really ran in.  bytes: of the engine.  miou, pixel_accuracy, class_iou: 0..1 in the data's classes, None
    without labels.  agreement: with the reference's labels, in the model's classes.  speedup: the median frame
    time of the comparison's yardstick over this one's.  peak_bytes: of a process that does nothing else.
    gpu_floor_ms: of a candidate, by board, what NVIDIA's compiler makes of its graph takes there at least for a window,
    a roofline (see engines.roofline.floor).  gpu_floor_note: how it was found, or why it was not.
    windows, frame_size: of one frame, (height, width) in pixels.
    passed, reasons: whether it was built, ran and stayed within the limits, and if not, why not.
    """

    model: str
    precision: str
    backend: str
    reference: bool = False
    baseline: bool = False
    views: Mapping[str, Any] | None = None
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
    gpu_floor_ms: Mapping[str, float] = field(default_factory=dict)
    gpu_floor_note: str = ""
    verification: tuple[Mapping[str, Any], ...] = ()
    log: tuple[tuple[str, str], ...] = ()
    passed: bool = False
    reasons: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.precision} {self.backend}{' tta' if self.views else ''}".strip()

    @property
    def judged(self) -> bool:
        """Whether it is a candidate, not one of those that candidates are held against."""
        return not (self.reference or self.baseline or self.views)

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


@dataclass(frozen=True)
class Comparison:
    """Every row, the reference first, with all that is needed to read and to repeat them.

    parameters: of the model.  macs: multiply-adds of one window, of the graph that engines are built from.
    classes: the model's, in which agreement is counted.  data_classes: those of the labels, for mIoU.
    data: path, sha256 of its files, images, labelled.  machine, versions: see engines.measure.bench.settings.
    ship: the name of the row to ship, or None.  verdict: one line that says which and why.
    """

    model: str
    model_sha256: str
    parameters: int
    macs: int
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
