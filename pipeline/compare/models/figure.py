"""The picture of several models: accuracy against latency, a colour a model and a mark a precision; and resolutions."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from pipeline.compare.models.rows import Overview, Subject
from pipeline.compare.report.figure import MARKS, shown_accuracy
from pipeline.figures.canvas import encoded, new_figure, style, title
from pipeline.figures.theme import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def picture(overview: Overview, kind: str, theme: Theme = LIGHT) -> bytes:
    """As a file of `kind` (png or svg)."""
    resized = any(subject.miou_at for subject in overview.subjects)
    with style(theme):
        figure = new_figure(13 if resized else 7.5, 5.6)
        panels = figure.subplots(1, 2 if resized else 1, squeeze=False)[0]
        _trade(panels[0], overview, theme)
        if resized:
            _resolutions(panels[1], overview, theme)
        return encoded(figure, kind)


def _trade(axes: Axes, overview: Overview, theme: Theme) -> None:
    title(axes, theme, "Accuracy against latency", "p50 of a frame, all engines in turn; up and left is better")
    for subject, tint in zip(overview.subjects, cycle(theme.precisions.values()), strict=False):
        points = sorted(
            (subject.timing(row).frame.p50, shown_accuracy(subject.comparison, row), row.precision)
            for row in subject.rows
        )
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=tint, lw=1, alpha=0.4, zorder=1)
        for x, y, precision in points:
            axes.plot(x, y, MARKS.get(precision, "o"), ms=9, mfc=tint, mec=theme.paper, mew=0.8, zorder=3)
            axes.annotate(precision, (x, y), xytext=(7, 6), textcoords="offset points", color=tint, fontsize=8.5)
        axes.plot([], [], "o", ms=8, mfc=tint, mec=theme.paper, label=_label(subject))
    times = [subject.timing(row).frame.p50 for subject in overview.subjects for row in subject.rows]
    if max(times) > 4 * min(times):
        axes.set_xscale("log")
        axes.set_xlim(min(times) / 1.35, max(times) * 1.6)
    axes.set_xlabel("milliseconds a frame")
    axes.set_ylabel("mIoU, %" if overview.labelled else "labels as in the reference, %")
    axes.grid(True, color=theme.line, lw=0.6, alpha=0.7)
    axes.legend(loc="lower right", frameon=False)


def _resolutions(axes: Axes, overview: Overview, theme: Theme) -> None:
    title(axes, theme, "Other resolutions", "mIoU on images resized before they are segmented")
    for subject, tint in zip(overview.subjects, cycle(theme.precisions.values()), strict=False):
        found = {factor: 100 * miou for factor, miou in (subject.miou_at or {}).items() if miou is not None}
        points = sorted(found.items())
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            "o-",
            color=tint,
            ms=7,
            label=f"{subject.name}, {subject.resized}",
        )
    axes.set_xlabel("times the size of the image")
    axes.set_ylabel("mIoU, %")
    axes.grid(True, color=theme.line, lw=0.6, alpha=0.7)
    axes.legend(loc="lower right", frameon=False)


def _label(subject: Subject) -> str:
    comparison = subject.comparison
    return f"{subject.name}, {comparison.parameters / 1e6:.1f} M parameters, {comparison.macs / 1e9:.1f} GMAC a window"
