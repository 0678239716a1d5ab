"""OpenVINO, by its measured times: see benchmarks/NOTES.md.  ``auto`` times every block on the machine itself."""

from __future__ import annotations

from pipeline.precision.placement.rules import Placement, always, nothing

PLACEMENT = Placement("OpenVINO's measured times", fine=always, refused=nothing)
