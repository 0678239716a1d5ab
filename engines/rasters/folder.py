"""The rasters among the inputs of `run`, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.errors import DeployError, GpuLostError
from engines.rasters.run import RasterOptions, RasterReport, run_raster
from engines.segmenter import Segmenter


def run_rasters(
    segmenter: Segmenter, targets: Mapping[str, Path], options: RasterOptions, bundle: Mapping[str, Any],
    lost: str | None,
) -> Iterator[tuple[str, RasterReport | DeployError]]:  # fmt: skip
    """What becomes of each, as it does: one that cannot be read or written holds up no other.

    targets: what GDAL opens -> labels.
    lost: why nothing runs any more.
    """
    for source, target in targets.items():
        try:
            if lost is not None:
                raise GpuLostError(lost)
            if target.resolve() == Path(source).resolve():
                raise DeployError(f"output {target}: would overwrite the input; choose another -o")
            report = run_raster(segmenter, source, target, options, bundle)
        except DeployError as error:
            lost = str(error) if isinstance(error, GpuLostError) else lost
            yield source, error
        else:
            yield source, report


def joined(reports: Sequence[RasterReport]) -> list[RasterReport]:
    """Those of several shards, one for each raster: of the shard that put it together, with the windows of all."""
    found: dict[str, RasterReport] = {}
    for report in reports:
        other = found.get(report.input, replace(report, windows=0))
        last = other if other.complete else report
        found[report.input] = replace(last, windows=other.windows + report.windows)
    return list(found.values())
