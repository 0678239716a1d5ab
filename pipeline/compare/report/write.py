"""The files of a comparison, beside its bundles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.compare.report.figure import picture
from pipeline.compare.report.page import page
from pipeline.compare.report.table import markdown
from pipeline.compare.rows import Comparison
from pipeline.compare.worst import Picture

JSON = "compare.json"
RANGES = "ranges.json"  # where the ranges for INT8 were collected here
FILES = (JSON, RANGES, "compare.md", "compare.png", "compare.svg", "compare.html")


def write(folder: Path, comparison: Comparison, pictures: Mapping[str, tuple[Picture, ...]]) -> None:
    """Write FILES but RANGES.  pictures: the worst images by the row's name."""
    (folder / JSON).write_text(json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n")
    (folder / "compare.md").write_text(markdown(comparison))
    for kind in ("png", "svg"):
        (folder / f"compare.{kind}").write_bytes(picture(comparison, kind))
    (folder / "compare.html").write_text(page(comparison, pictures), encoding="utf-8")
