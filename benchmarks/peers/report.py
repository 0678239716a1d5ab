"""Results as JSON, as a table on a terminal, and as Markdown for the README."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.peers.contestants import REFERENCE
from benchmarks.peers.measure import Row
from benchmarks.peers.models import MODELS
from benchmarks.peers.startup import RunRow
from engines.files import make_folder, replacing, write_json


@dataclass(frozen=True)
class Report:
    """Everything one run of the benchmark found.  load: one-minute load average before it began, 0 on an idle machine.

    refused: precision -> why this machine has none.  notes: what went wrong beside the measurements.
    """

    rows: tuple[Row, ...]
    runs: tuple[RunRow, ...]
    threads: int
    versions: dict[str, str]
    peaks_exact: bool = True
    refused: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    day: str = field(default_factory=lambda: str(date.today()))
    device: str = field(default_factory=lambda: device())
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    def to_json(self) -> dict[str, Any]:
        rows, runs = ([row.to_json() for row in part] for part in (self.rows, self.runs))
        return {**vars(self), "rows": rows, "runs": runs, "notes": list(self.notes), "ratios": list(ratios(self.rows))}

    @classmethod
    def load_json(cls, path: Path) -> Report:
        body = json.loads(path.read_text())
        del body["ratios"]
        body["rows"] = tuple(Row.from_json(row) for row in body["rows"])
        body["runs"] = tuple(RunRow(**run) for run in body["runs"])
        return cls(**{**body, "notes": tuple(body["notes"])})

    def head(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in sorted(self.versions.items()))
        return f"{self.day}, {self.device}, {self.threads} threads, load {self.load:.1f} before; {versions}"


def device() -> str:
    """Processor, cores of this process, memory."""
    name = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{name} ({platform.machine()}), {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB"


def groups(measured: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of each model on each image, in the order they were measured."""
    for (model, image), part in groupby(measured, key=lambda row: (row.model, row.image)):
        known = MODELS[model]
        rows = list(part)
        rounds = max(len(row.frames_ms) for row in rows)
        yield f"{known.title}, {image}, windows {known.window}/{known.stride}, {rounds} rounds", rows


def ratios(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """How many times faster edgeseg is: than eager, and than the best peer of the same precision."""
    for title, part in groups(rows):
        measured = {row.contestant: row for row in part if not row.error}
        for name, ours in measured.items():
            if not name.startswith("edgeseg-"):
                continue
            precision = name.removeprefix("edgeseg-")
            others = [REFERENCE, *(n for n in measured if n in equal_peers(precision))]
            for other in dict.fromkeys(others):
                if other in measured:
                    pairs = zip(measured[other].frames_ms, ours.frames_ms, strict=True)
                    value = statistics.median(theirs / mine for theirs, mine in pairs)
                    yield {"group": title, "edgeseg": precision, "peer": other, "ratio": value}


def equal_peers(precision: str) -> tuple[str, ...]:
    """The peers that compute in `precision`."""
    return ("openvino-bf16",) if precision == "bf16" else ("monai", "compile", "ort", "openvino-fp32")


def _number(pattern: str) -> Callable[[Any], str]:
    return lambda value: "" if value is None else pattern.format(value)


# column head: (field, format)
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "ms": ("median_ms", _number("{:.0f}")),
    "p95": ("p95_ms", _number("{:.0f}")),
    "network": ("network_ms", _number("{:.0f}")),
    "rest": ("rest_ms", _number("{:.0f}")),
    "speed": ("speedup", _number("{:.2f}x")),
    "labels equal": ("labels_equal", _number("{:.4%}")),
    "mIoU": ("miou", _number("{:.2%}")),
    "peak MB": ("peak_mb", _number("{:.0f}")),
    "load s": ("load_s", _number("{:.1f}")),
    "1st window s": ("first_window_s", _number("{:.1f}")),
}


def _columns(rows: Sequence[Row]) -> dict[str, tuple[str, Callable[[Any], str]]]:
    return {head: c for head, c in COLUMNS.items() if any(getattr(row, c[0]) is not None for row in rows)}


def table(report: Report) -> str:
    """For a terminal."""
    lines = [report.head()]
    for title, rows in groups(report.rows):
        columns = _columns(rows)
        width = max(len(row.title) for row in rows)
        lines += ["", title, " " * width + "".join(f"{head:>14}" for head in columns)]
        for row in rows:
            cells = "".join(f"{show(getattr(row, name)):>14}" for name, show in columns.values())
            lines.append(f"{row.title:{width}}{'  ' + row.error if row.error else cells}")
        lines += [
            f"  edgeseg {r['edgeseg']} is {r['ratio']:.2f} times as fast as {r['peer']}"
            for r in ratios(report.rows) if r["group"] == title
        ]  # fmt: skip
    if report.runs:
        lines.append("")
    lines += [_run_line(run) for run in report.runs]
    lines += ["", *_remarks(report)]
    return "\n".join(lines)


def _run_line(run: RunRow) -> str:
    first = "engine call not seen" if run.first_call_s is None else f"first engine call after {run.first_call_s:.2f} s"
    return (
        f"deploy.py run, {run.model} {run.precision}, {run.image}: {first}, {run.total_s:.1f} s in all, "
        f"peak {run.peak_mb:.0f} MB"
    )


def _remarks(report: Report) -> list[str]:
    ties = [row.near_ties for row in report.rows if row.near_ties is not None]
    lines = []
    if ties:
        lines.append(
            f"labels equal: to the first row, where its two best classes differ by 1e-4 or more "
            f"(all but at most {max(ties):.3%} of the pixels)"
        )
    lines.append(
        "peak MB: resident, while segmenting one frame"
        if report.peaks_exact
        else "peak MB: resident, since the process began (this kernel does not reset it): start-up is in it"
    )
    lines.append(
        "speed: median of the ratios to the first row within each round; 1st window: with torch.compile's work"
    )
    lines += [f"edgeseg {precision} was not measured: {why}" for precision, why in report.refused.items()]
    return lines + list(report.notes)


def markdown(report: Report) -> str:
    """For the README: one table a model and image, failures as footnotes."""
    lines = [f"{report.head()}.", ""]
    for title, rows in groups(report.rows):
        columns = {head: c for head, c in _columns(rows).items() if head not in ("load s", "1st window s")}
        lines += [f"| {title} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        for row in rows:
            cells = [show(getattr(row, name)) for name, show in columns.values()]
            if row.error:
                cells = [row.error.replace("|", "/"), *[""] * (len(columns) - 1)]
            name = f"**{row.title}**" if row.contestant.startswith("edgeseg") else row.title
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- {line}" for line in (*map(_run_line, report.runs), *_remarks(report))]
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path) -> None:
    """peers.json and peers.md in `folder`, which is made."""
    make_folder(folder)
    write_json(folder / "peers.json", report.to_json())
    with replacing(folder / "peers.md") as file:
        file.write(markdown(report).encode())
