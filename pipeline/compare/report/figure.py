"""The picture of a comparison: accuracy against latency with the Pareto front, and what each class loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.compare.rows import Comparison, Row, class_changes
from pipeline.figures.canvas import encoded, new_figure, style, title
from pipeline.figures.points import Point, milliseconds, name_points, time_axis
from pipeline.figures.theme import LIGHT, Theme, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES_SHOWN = 20
MARKS = {"fp32": "o", "fp16": "D", "bf16": "s", "int8": "^", "fp8": "v", "auto": "P"}


def picture(comparison: Comparison, kind: str, theme: Theme = LIGHT) -> bytes:
    """Both panels side by side as a file of `kind` (png or svg)."""
    with style(theme):
        figure = new_figure(13, 5.6)
        left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.15, 1)})
        _trade(left, comparison, theme)
        _classes(right, comparison, theme)
        return encoded(figure, kind)


def trade_off(comparison: Comparison, theme: Theme) -> bytes:
    """The left panel alone, as PNG."""
    with style(theme):
        figure = new_figure(6.4, 4.5)
        _trade(figure.subplots(), comparison, theme)
        return encoded(figure, "png")


def class_panel(comparison: Comparison, theme: Theme) -> bytes:
    """The right panel alone, as PNG, as high as its classes need."""
    shown = min(CLASSES_SHOWN, max(len(class_changes(comparison, row)) for row in comparison.rows))
    with style(theme):
        figure = new_figure(6.4, max(3.2, 1.6 + 0.3 * shown))
        _classes(figure.subplots(), comparison, theme)
        return encoded(figure, "png")


def pareto(rows: list[Row], accuracy: dict[str, float]) -> list[Row]:
    """The rows that no other one beats in both latency and accuracy, from fast to slow."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda r: (_ms(r), -accuracy[r.name])):
        if not front or accuracy[row.name] > accuracy[front[-1].name]:
            front.append(row)
    return front


def _trade(axes: Axes, comparison: Comparison, theme: Theme) -> None:
    rows = [row for row in comparison.rows if row.measured]
    accuracy = {row.name: shown_accuracy(comparison, row) for row in rows}
    title(axes, theme, "Accuracy against latency", "p50 of a frame, line to p95; up and left is better")
    low, high = _y_range(list(accuracy.values()), comparison)
    axes.set_ylim(low, high)
    time_axis(axes, [_ms(row) for row in rows] + [row.timing.frame.p95 for row in rows if row.timing], theme)
    front = pareto(rows, accuracy)
    xs, ys = [_ms(row) for row in front], [accuracy[row.name] for row in front]
    right = axes.get_xlim()[1]
    axes.step(
        [xs[0], *xs, right], [low, *ys, ys[-1]], where="post", color=theme.muted, lw=1.2, ls=(0, (4, 3)), zorder=1
    )
    axes.fill_between([*xs, right], [*ys, ys[-1]], low, step="post", color=theme.soft, zorder=0)
    _limit(axes, comparison, theme, low)
    for row in rows:
        assert row.timing is not None
        y, tint = accuracy[row.name], colour(theme, row.precision, not row.judged)
        axes.plot([_ms(row), row.timing.frame.p95], [y, y], color=tint, lw=2.2, alpha=0.45, solid_capstyle="round")
        passed = row.passed or not row.judged
        axes.plot(_ms(row), y, MARKS.get(row.precision, "o"), ms=10, mec=tint, mew=2, zorder=4,
                  mfc=tint if passed else theme.paper)  # fmt: skip
    _name_points(axes, rows, accuracy, theme)
    axes.set_ylabel("mIoU, %" if comparison.labelled else "labels as in the reference, %", color=theme.muted)
    axes.grid(True, color=theme.line, lw=0.6, alpha=0.7)


def _classes(axes: Axes, comparison: Comparison, theme: Theme) -> None:
    rows = [row for row in comparison.candidates if row.measured]
    changes = {row.name: dict(class_changes(comparison, row)) for row in rows}
    worst: dict[str, float] = {}
    for each in changes.values():
        for name, value in each.items():
            worst[name] = max(worst.get(name, 0.0), abs(value))
    names = sorted(worst, key=lambda name: -worst[name])[:CLASSES_SHOWN]
    what = "points of IoU against the reference" if comparison.labelled else "points of IoU with the reference's masks"
    hidden = len(worst) - len(names)
    title(
        axes,
        theme,
        "What each class gains or loses",
        what + (f"; {hidden} classes that change less not shown" if hidden else ""),
    )
    axes.axvline(0, color=theme.muted, lw=1)
    spread = 0.5 / max(1, len(rows))
    for index, row in enumerate(rows):
        shift = (index - (len(rows) - 1) / 2) * spread
        tint = colour(theme, row.precision, False)
        values = [changes[row.name].get(name, 0.0) for name in names]
        places = [position + shift for position in range(len(names))]
        axes.hlines(places, 0, values, color=tint, lw=2, alpha=0.5)
        axes.plot(
            values, places, MARKS.get(row.precision, "o"), ms=6, mfc=tint, mec=theme.paper, mew=0.6, label=row.name
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    gains = [value for each in changes.values() for value in each.values()]
    reach = max([0.1, *(worst[name] for name in names)]) * 1.15
    axes.set_xlim(-reach, max(0.08 * reach, 1.3 * max([0.0, *gains])))
    axes.grid(True, axis="x", color=theme.line, lw=0.6, alpha=0.7)
    axes.tick_params(axis="y", length=0)
    if rows:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=min(4, len(rows)), frameon=False)


def shown_accuracy(comparison: Comparison, row: Row) -> float:
    if comparison.labelled:
        return 100 * (row.miou or 0.0)
    return 100 * (row.agreement.labels if row.agreement else 0.0)


def _y_range(values: list[float], comparison: Comparison) -> tuple[float, float]:
    """At least as high as twice the allowed drop, so that differences which do not matter look like it."""
    allowed = comparison.limits["max_drop"] if comparison.labelled else 100 * (1 - comparison.limits["min_agreement"])
    top = max(values)
    span = max(top - min(values), 1.6 * allowed, 0.05)
    return top - 1.18 * span, top + 0.14 * span


def _limit(axes: Axes, comparison: Comparison, theme: Theme, low: float) -> None:
    """A line at the least accuracy that passes."""
    if comparison.labelled:
        floor = 100 * (comparison.reference.miou or 0.0) - comparison.limits["max_drop"]
        text = f"allowed drop, {comparison.limits['max_drop']:g} points"
    else:
        floor = 100 * comparison.limits["min_agreement"]
        text = f"required, {floor:g} %"
    if floor > low:
        axes.axhline(floor, color="#d03a4a", lw=1, ls=":", zorder=1)
        axes.annotate(text, (1, floor), xycoords=("axes fraction", "data"), xytext=(-4, -4), color="#d03a4a",
                      textcoords="offset points", ha="right", va="top", fontsize=8.5)  # fmt: skip


def _name_points(axes: Axes, rows: list[Row], accuracy: dict[str, float], theme: Theme) -> None:
    ordered = sorted(rows, key=lambda row: -accuracy[row.name])
    name_points(axes, [
        Point(_ms(row), accuracy[row.name], f"{row.name}  {milliseconds(_ms(row))}",
              colour(theme, row.precision, not row.judged))
        for row in ordered
    ])  # fmt: skip


def _ms(row: Row) -> float:
    assert row.timing is not None
    return row.timing.frame.p50
