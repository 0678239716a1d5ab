"""What a comparison of several models is made of, as it is written to compare.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.measure.bench import Timing
from pipeline.compare.rows import SCHEMA, Comparison, Row


@dataclass(frozen=True)
class Subject:
    """One model.  name: as it was typed, shortened, and the folder of its own comparison; see `names`.

    timings: by the row's name, of rounds in which the engines of all models took turns on the same frames.
    miou_at: by the factor that images were resized by before they were segmented, 0..1, of the row `resized`.
    """

    name: str
    comparison: Comparison
    timings: Mapping[str, Timing]
    architecture: str
    resized: str = ""
    miou_at: Mapping[float, float | None] | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those that were measured, the reference first."""
        return tuple(row for row in self.comparison.rows if row.measured)

    def timing(self, row: Row) -> Timing:
        """Beside the other models, or by itself where its engine failed there."""
        own = row.timing
        assert own is not None, "rows that were measured have a time"
        return self.timings.get(row.name, own)


@dataclass(frozen=True)
class Overview:
    """subjects: in the order in which they were given.  frame_size: (height, width) of the frames of `timings`."""

    subjects: tuple[Subject, ...]
    rounds: int
    frame_size: tuple[int, int]

    @property
    def passed(self) -> bool:
        return all(subject.comparison.passed for subject in self.subjects)

    @property
    def labelled(self) -> bool:
        return all(subject.comparison.labelled for subject in self.subjects)

    def to_json(self) -> dict[str, Any]:
        """The list `rows` as in a comparison of one model, with what belongs to the model in each."""
        models, rows = [], []
        for subject in self.subjects:
            at = None if subject.miou_at is None else {f"{factor:g}": miou for factor, miou in subject.miou_at.items()}
            size = {"parameters": subject.comparison.parameters, "macs": subject.comparison.macs}
            models.append({
                "name": subject.name, "architecture": subject.architecture, "model": subject.comparison.model,
                "model_sha256": subject.comparison.model_sha256,
                "ship": subject.comparison.ship, "miou_at": at, "miou_at_of": subject.resized, **size,
            })  # fmt: skip
            for row in subject.comparison.rows:
                body = row.to_json() | {"name": subject.name, **size}
                if row.measured:
                    timing = subject.timing(row)
                    body |= {f"{part}_ms": getattr(timing, part).to_json() for part in ("engine", "frame")}
                body["folder"] = f"{subject.name}/{row.folder}" if row.folder else ""
                rows.append(body)
        first = self.subjects[0].comparison
        shared = {key: getattr(first, key) for key in ("tiling", "data", "limits", "machine", "versions", "created")}
        return {
            "schema": SCHEMA, "models": models, "rows": rows, "rounds": self.rounds, "passed": self.passed,
            "frame_size": list(self.frame_size), **shared,
        }  # fmt: skip
