"""The rasters among the inputs of `run`, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.errors import DeployError, GpuLostError
from engines.rasters.run import RasterOptions, RasterReport, run_raster
from engines.segmenter import Segmenter


@dataclass
class RastersReport:
    """failed: why, by input.  lost: why nothing after it could run, or None."""

    done: list[RasterReport] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lost: str | None = None


def run_rasters(
    segmenter: Segmenter, targets: Mapping[Path, Path], options: RasterOptions, bundle: Mapping[str, Any],
    lost: str | None,
) -> RastersReport:  # fmt: skip
    """One that cannot be read or written is reported; the rest are finished.  lost: why nothing runs any more."""
    report = RastersReport(lost=lost)
    for path, target in targets.items():
        try:
            if report.lost is not None:
                raise GpuLostError(report.lost)
            if target.resolve() == path.resolve():
                raise DeployError(f"output {target}: would overwrite the input; choose another -o")
            report.done.append(run_raster(segmenter, path, target, options, bundle))
        except DeployError as error:
            report.failed[str(path)] = str(error)
            if isinstance(error, GpuLostError):
                report.lost = str(error)
    return report


def joined(reports: Sequence[RasterReport]) -> list[RasterReport]:
    """Those of several shards, one for each raster: of the shard that put it together, with the windows of all."""
    found: dict[str, RasterReport] = {}
    for report in reports:
        other = found.get(report.input, replace(report, windows=0))
        last = report if report.complete else other
        found[report.input] = replace(last, windows=other.windows + report.windows)
    return list(found.values())
