"""Draw peers.json: milliseconds per frame, one panel a model, network and rest, for light and for dark pages.

    python -m benchmarks.peers.plot DIR/peers.json

Writes peers-IMAGE-light.svg and peers-IMAGE-dark.svg beside it (and .png with --png).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.peers.measure import Row
from benchmarks.peers.models import MODELS
from benchmarks.peers.report import Report

TIMES = "\N{MULTIPLICATION SIGN}"
BAR, GAP = 0.34, 0.62  # inches: a bar's row, and a panel's head


@dataclass(frozen=True)
class Theme:
    page: str
    text: str
    faint: str
    peer: tuple[str, str]  # network, rest
    ours: tuple[str, str]


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#59636e", ("#8c959f", "#d1d9e0"), ("#0969da", "#80ccff")),
    "dark": Theme("#0d1117", "#f0f6fc", "#9198a1", ("#6e7681", "#3d444d"), ("#4493f8", "#1f4b8e")),
}


def draw(report: Report, image: str, theme: Theme) -> Figure:
    """A figure of every model that was measured on `image`."""
    panels: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.image == image:
            panels.setdefault(row.model, []).append(row)
    heights = [GAP + BAR * len(rows) for rows in panels.values()]
    total = sum(heights) + 0.70
    figure = Figure(figsize=(9.2, total), facecolor=theme.page)
    top = total - 0.02
    for (model, rows), height in zip(panels.items(), heights, strict=True):
        bars = BAR * len(rows)
        axes = figure.add_axes((0.335, (top - GAP + 0.18 - bars) / total, 0.65, bars / total))
        _panel(axes, rows, theme)
        head = f"{MODELS[model].title}, {_size(image)}"
        figure.text(0.012, (top - 0.22) / total, head, color=theme.text, fontsize=12, weight="bold", va="center")
        top -= height
    _legend(figure, total, theme)
    rounds = max(len(row.frames_ms) for rows in panels.values() for row in rows)
    note = f"{report.day} · {report.device} · {report.threads} threads · medians of {rounds} rounds"
    figure.text(0.012, 0.13 / total, note, color=theme.faint, fontsize=8, va="center")
    return figure


def _panel(axes: Axes, rows: list[Row], theme: Theme) -> None:
    longest = max((row.median_ms or 0 for row in rows), default=0) or 1
    for index, row in enumerate(rows):
        ours = row.contestant.startswith("edgeseg")
        weight = "bold" if ours else "normal"
        axes.text(-0.012, index, row.title, transform=axes.get_yaxis_transform(), ha="right", va="center",
                  fontsize=9.5, color=theme.text, weight=weight)  # fmt: skip
        if row.median_ms is None or row.network_ms is None:
            axes.text(0, index, f" {_short(row.error)}", va="center", fontsize=8.5, color=theme.faint, style="italic")
            continue
        colours = theme.ours if ours else theme.peer
        # Medians of the parts do not add up to the median of the whole: the bar ends at the whole.
        network = min(row.network_ms, row.median_ms)
        axes.barh(index, network, 0.7, color=colours[0], linewidth=0)
        axes.barh(index, row.median_ms - network, 0.7, left=network, color=colours[1], linewidth=0)
        ratio = "" if row.speedup is None or row.contestant == "eager" else f"  ·  {row.speedup:.1f}{TIMES}"
        axes.text(row.median_ms + 0.01 * longest, index, f"{_time(row.median_ms)}{ratio}", va="center", fontsize=9.5,
                  color=theme.text, weight=weight)  # fmt: skip
    axes.set_xlim(0, 1.22 * longest)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_facecolor(theme.page)
    axes.set_yticks([])
    axes.set_xticks([])
    for name, spine in axes.spines.items():
        spine.set_visible(name == "left")
        spine.set_color(theme.faint)


def _legend(figure: Figure, total: float, theme: Theme) -> None:
    """Below the panels: the two shades, in edgeseg's colours and in the peers'."""
    width, y, x = figure.get_figwidth(), 0.40, 0.012
    for index, label in enumerate(("network", "rest: pre-processing, stitching")):
        for colour in (theme.ours[index], theme.peer[index]):
            box = (x, (y - 0.06) / total)
            figure.add_artist(
                Rectangle(box, 0.17 / width, 0.12 / total, transform=figure.transFigure, color=colour, linewidth=0)
            )
            x += 0.2 / width
        figure.text(x + 0.005, y / total, label, color=theme.text, fontsize=9, va="center")
        x += 0.105 + 0.008 * len(label) * (index + 1) / 2
    words = f"{TIMES}: times as fast as the first row"
    figure.text(0.985, y / total, words, color=theme.text, fontsize=9, va="center", ha="right")


def _size(image: str) -> str:
    return image.replace("x", TIMES)


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1e3:.1f} s"


def _short(error: str) -> str:
    return error if len(error) <= 90 else f"{error[:88]}…"


def write(report: Report, folder: Path, suffix: str = "svg") -> list[Path]:
    """peers-IMAGE-THEME.svg for every image and theme; the same report gives the same bytes."""
    matplotlib.rcParams["svg.hashsalt"] = "edgeseg"
    paths = []
    for image in dict.fromkeys(row.image for row in report.rows):
        for name, theme in THEMES.items():
            path = folder / f"peers-{image}-{name}.{suffix}"
            metadata = {"Date": None} if suffix == "svg" else {}
            draw(report, image, theme).savefig(path, facecolor=theme.page, metadata=metadata, dpi=100)
            paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--png", action="store_true")
    args = parser.parse_args()
    report = Report.load_json(args.json)
    for path in write(report, args.json.parent, "png" if args.png else "svg"):
        print(path)


if __name__ == "__main__":
    main()
