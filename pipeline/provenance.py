"""Which images a build calibrated on, held out and was verified on: said while it runs, and kept in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calib.data.datasets import Dataset
from calib.ranges.split import Photograph, Split
from engines.contract import Log
from pipeline.request import BuildRequest

UNKNOWN = "the ranges do not say which images they saw (an older calibrate wrote them)"


def announce(division: Split | None, log: Log) -> None:
    """One line for the division, and its notes."""
    if division is not None:
        log("split", str(division))
        for note in division.notes:
            log("warning", note)


def golden_of(request: BuildRequest) -> Photograph | None:
    """The file that the build is verified on; None of a rendered scene, or of an image that no file is known of."""
    if request.sample is not None or request.sample_file is not None:
        return request.sample_file
    return None if request.photographs is None else request.photographs.golden


def provenance(request: BuildRequest, calibration: Mapping[str, Any] | None, log: Log) -> dict[str, Any]:
    """For the manifest, with names and digests.  Says so where what was verified on was calibrated on.

    calibration: of the ranges, as report.json has it; None where nothing was calibrated.
    calibrated_on: None where that is not known.  golden_calibrated_on: likewise; False of a rendered scene.
    """
    golden = golden_of(request)
    seen = [] if calibration is None else calibration.get("photographs")
    known = None if seen is None else golden is not None and golden.sha256 in {each["sha256"] for each in seen}
    if golden is not None and known is None:
        log("warning", f"{UNKNOWN}: whether {golden.name}, which this is verified on, was one of them is not known")
    if golden is not None and known:
        log("warning", f"verified on {golden.name}, which was calibrated on")
    return {
        **({} if request.photographs is None else request.photographs.to_json()),
        "calibrated_on": seen,
        "golden": None if golden is None else golden.to_json(),
        "golden_calibrated_on": known if golden is not None else False,
    }


def not_seen(
    dataset: Dataset, seen: Sequence[Photograph] | None, decided: Sequence[Photograph], log: Log
) -> tuple[Dataset, dict[str, Any]]:
    """The images of `dataset` that were neither calibrated on nor decided on, and what to write down about the others.

    seen: None where that is not known.  Where no other images are left all are kept; that is said, and so is what is
    not known.  Raises DeployError when a file cannot be read.
    """
    if seen is None:
        log("warning", f"{UNKNOWN}: whether they are among those of {dataset.layout.root} is not known")
        return dataset, {"seen": None, "seen_left_out": False}
    rest = dataset.without({each.sha256 for each in (*seen, *decided)})
    total, count = len(dataset.samples), len(dataset.samples) - len(rest.samples)
    if not rest.samples:
        log("warning", f"all {total} image(s) of {dataset.layout.root} were calibrated on: scores are of what was seen")
        return dataset, {"seen": count, "seen_left_out": False}
    if count:
        log("data", f"{count} of {total} images were calibrated or decided on, and are left out")
    return rest, {"seen": count, "seen_left_out": count > 0}
