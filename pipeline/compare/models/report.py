"""A comparison of several models as a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.compare.models.figure import picture
from pipeline.compare.models.rows import Overview, Subject
from pipeline.compare.report.table import aligned, pipes, wrapped
from pipeline.compare.report.write import JSON
from pipeline.compare.rows import Row, drop, percent


def write(folder: Path, overview: Overview) -> None:
    """compare.json, .md, .png and .svg, beside a folder a model with the comparison of its precisions."""
    (folder / JSON).write_text(json.dumps(overview.to_json(), indent=1, allow_nan=False) + "\n")
    (folder / "compare.md").write_text(markdown(overview))
    for kind in ("png", "svg"):
        (folder / f"compare.{kind}").write_bytes(picture(overview, kind))


def terminal(overview: Overview) -> str:
    return "\n".join([*aligned(cells(overview)), "", *map(wrapped, notes(overview))])


def markdown(overview: Overview) -> str:
    own = [f"- [{each.name}]({each.name}/compare.md): {each.comparison.model}" for each in overview.subjects]
    parts = [
        f"# {' against '.join(each.name for each in overview.subjects)}", pipes(cells(overview), left=3),
        "\n".join(f"- {text}" for text in notes(overview)), "![accuracy against latency](compare.png)",
        "## Each by itself", "\n".join(own),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def cells(overview: Overview) -> list[list[str]]:
    """A header, then a line for each engine that was measured."""
    factors = sorted({factor for each in overview.subjects for factor in each.miou_at or ()})
    sizes = ["M param", "GMAC", "MB"]
    head = ["model", "architecture", "precision", *sizes, "mIoU", "change", "kept", "engine ms", "frame ms"]
    lines = [[*head, *(f"mIoU x{factor:g}" for factor in factors), ""]]
    return [*lines, *(_line(each, row, factors) for each in overview.subjects for row in each.rows)]


def notes(overview: Overview) -> list[str]:
    height, width = overview.frame_size
    tiling = overview.subjects[0].comparison.tiling
    text = [
        f"ms: p50 of {overview.rounds} rounds in which all engines took turns on the same frames of {width}x{height} "
        f"pixels; GMAC: of one window of {tiling['window_w']}x{tiling['window_h']}"
    ]
    resized = [each for each in overview.subjects if each.miou_at]
    if resized:
        text.append("mIoU xF: on images resized by F before they are segmented, labels brought back to the data's size")
    return [*text, *(f"{each.name}: {each.comparison.verdict}" for each in overview.subjects)]


def _line(subject: Subject, row: Row, factors: Sequence[float]) -> list[str]:
    comparison, timing = subject.comparison, subject.timing(row)
    lost = None if row.reference else drop(comparison.reference, row)
    at = subject.miou_at if subject.miou_at is not None and row.name == subject.resized else {}
    return [
        subject.name, subject.architecture, row.name,
        f"{comparison.parameters / 1e6:.1f}", f"{comparison.macs / 1e9:.1f}",
        "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}", percent(row.miou),
        "-" if lost is None else f"{-lost + 0.0:+.2f}",
        "-" if row.agreement is None else percent(row.agreement.labels),
        f"{timing.engine.p50:.1f}", f"{timing.frame.p50:.1f}", *(percent(at.get(factor)) for factor in factors),
        ("pass" if row.passed else "FAIL") if row.judged else "",
    ]  # fmt: skip
