"""Points on an axis of time, and their names where no other point or name is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.figures.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where a name may stand, in points from its point: x, y, and which side of it that is.
_SPOTS = [
    (12, 8, "left", "bottom"), (-12, 8, "right", "bottom"), (12, -9, "left", "top"), (-12, -9, "right", "top"),
    (0, 13, "center", "bottom"), (0, -13, "center", "top"), (12, 24, "left", "bottom"), (12, -25, "left", "top"),
    (-12, 24, "right", "bottom"), (-12, -25, "right", "top"), (12, 40, "left", "bottom"), (12, -41, "left", "top"),
    (-12, -41, "right", "top"), (-12, 40, "right", "bottom"), (12, -57, "left", "top"), (-12, -57, "right", "top"),
]  # fmt: skip


@dataclass(frozen=True)
class Point:
    """x, y: in data.  tint: of its name."""

    x: float
    y: float
    name: str
    tint: str


def milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def time_axis(axes: Axes, times: list[float], theme: Theme) -> None:
    """Milliseconds; logarithmic where the slowest takes more than four times as long as the fastest."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    fast, slow = min(times), max(times)
    if slow > 4 * fast:
        axes.set_xscale("log")
        axes.set_xlim(fast / 1.35, slow * 1.35)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(max(0.0, fast - 0.25 * (slow - fast) - 0.05 * fast), slow + 0.25 * (slow - fast) + 0.05 * slow)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("milliseconds a frame", color=theme.muted)


def name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Each beside its point, the first ones with the first choice.  The limits of the axes must stand."""
    from matplotlib.transforms import Bbox

    axes.figure.canvas.draw()
    centres = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in centres]
    frame = axes.get_window_extent()
    for point in points:
        text = axes.annotate(
            point.name, (point.x, point.y), textcoords="offset points", xytext=(0, 0), color=point.tint, fontsize=9.5,
            weight="bold", zorder=5,
        )  # fmt: skip
        for x, y, ha, va in _SPOTS:
            text.set(position=(x, y), ha=ha, va=va)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())
