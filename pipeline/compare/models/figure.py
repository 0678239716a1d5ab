"""The picture of several models: accuracy against latency, a colour a model and a mark a precision; and resolutions."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from pipeline.compare.models.rows import Overview, Subject
from pipeline.compare.report.figure import MARKS, shown_accuracy
from pipeline.compare.rows import Row
from pipeline.figures.canvas import encoded, new_figure, style, title
from pipeline.figures.points import Point, milliseconds, name_points, time_axis
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
    names = []
    for subject, tint in zip(overview.subjects, cycle(theme.precisions.values()), strict=False):
        rows = _by_time(subject)
        points = [(subject.timing(row).frame.p50, shown_accuracy(subject.comparison, row)) for row in rows]
        axes.plot([x for x, _ in points], [y for _, y in points], color=tint, lw=1, alpha=0.4, zorder=1)
        for (x, y), row in zip(points, rows, strict=True):
            inside = tint if row.judged else theme.paper
            axes.plot(x, y, MARKS.get(row.precision, "o"), ms=9, mfc=inside, mec=tint, mew=1.5, zorder=3)
            names.append(Point(x, y, f"{row.name}  {milliseconds(x)}", tint))
        axes.plot([], [], "o", ms=8, mfc=tint, mec=theme.paper, label=_label(subject))
    time_axis(axes, [point.x for point in names], theme)
    heights = [point.y for point in names]
    margin = max(0.15 * (max(heights) - min(heights)), 0.5)
    axes.set_ylim(min(heights) - margin, max(heights) + margin)
    axes.set_ylabel("mIoU, %" if overview.labelled else "labels as in the reference, %")
    axes.grid(True, color=theme.line, lw=0.6, alpha=0.7)
    _legend(axes)
    name_points(axes, names)


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
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Below, where no point is."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), frameon=False)


def _by_time(subject: Subject) -> list[Row]:
    return sorted(subject.rows, key=lambda row: subject.timing(row).frame.p50)


def _label(subject: Subject) -> str:
    comparison = subject.comparison
    size = f"{comparison.parameters / 1e6:.1f} M parameters, {comparison.macs / 1e9:.1f} GMAC a window"
    return f"{subject.name} ({subject.architecture}), {size}"
