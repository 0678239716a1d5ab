"""The picture of the fields, after figure 3 of the SegFormer paper: each whole, each close to, and how they fill up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.figures.canvas import encoded, new_figure, style
from pipeline.figures.theme import LIGHT, Theme
from pipeline.graph.reach.theory import Reach
from pipeline.receptive.field import Field

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAINTEST = 1e-3  # of the largest gradient of a panel: what is darker than all of the scale
CLOSE = 3.0  # times the radius of 90 % of the energy, the side of half the close view
DISCS = ((0.5, "-"), (0.95, "--"))


def picture(fields: Sequence[Field], reaches: Sequence[Reach], title: str, theme: Theme = LIGHT) -> bytes:
    """PNG: one column a field; `reaches` are the theoretical ones beside it."""
    with style(theme):
        figure = new_figure(max(6.4, 2.3 * len(fields) + 0.9), 8.2)
        grid = figure.add_gridspec(3, len(fields), height_ratios=(1, 1, 1.15))
        shown: Any = None
        for column, (field, reach) in enumerate(zip(fields, reaches, strict=True)):
            whole, close = (figure.add_subplot(grid[row, column]) for row in (0, 1))
            half, near = field.radii((0.5, 0.95))
            shown = _map(whole, field, reach, theme)
            _map(close, field, reach, theme)
            _zoom(close, field)
            whole.set_title(field.name, loc="left", fontsize=10, weight="bold", color=theme.ink, pad=18)
            _note(whole, f"50 % in {half:.0f} px, 95 % in {near:.0f} px", theme)
        _bar(figure, shown, theme)
        _filling(figure.add_subplot(grid[2, :]), fields, theme)
        figure.suptitle(title, x=0.01, y=0.985, ha="left", va="top", fontsize=12, weight="bold", color=theme.ink)
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(rect=(0, 0, 1, 0.94))  # type: ignore[call-arg]
        return encoded(figure, "png")


def _map(axes: Axes, field: Field, reach: Reach, theme: Theme) -> Any:
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Circle, Rectangle

    seen = np.maximum(field.gradient / field.gradient.max(), FAINTEST)
    shown = axes.imshow(seen, cmap="magma", norm=LogNorm(FAINTEST, 1), interpolation="nearest")
    y, x = field.centre
    for radius, (_, line) in zip(field.radii([share for share, _ in DISCS]), DISCS, strict=True):
        axes.add_patch(Circle((x, y), max(radius, 0.5), fill=False, ec="white", lw=0.9, ls=line))
    height, width = reach.local
    if height and width:
        corner = (reach.corner[1] - 0.5, reach.corner[0] - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec="#7fd4ff", lw=0.9, ls=":"))
    rows, columns = field.gradient.shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=theme.line)
    return shown


def _zoom(axes: Axes, field: Field) -> None:
    """Onto the middle; the scale is written in it, since each panel has its own."""
    y, x = field.centre
    rows, columns = field.gradient.shape
    side = min(max(8.0, CLOSE * field.radii((0.9,))[0]), rows - y - 0.5, columns - x - 0.5)
    axes.set(xlim=(x - side, x + side), ylim=(y + side, y - side))
    axes.annotate(f"{2 * side:.0f} px", (0, 0), xycoords="axes fraction", xytext=(5, 5), textcoords="offset points",
                  color="white", fontsize=8.5)  # fmt: skip


def _note(axes: Axes, text: str, theme: Theme) -> None:
    axes.annotate(text, (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
                  color=theme.muted, fontsize=8)  # fmt: skip


def _bar(figure: Figure, shown: Any, theme: Theme) -> None:
    bar = figure.colorbar(shown, ax=figure.axes, shrink=0.6, aspect=40, pad=0.01)
    bar.set_label("|gradient|, of the panel's largest", color=theme.muted, fontsize=8.5)
    bar.outline.set_visible(False)


def _filling(axes: Axes, fields: Sequence[Field], theme: Theme) -> None:
    """How much of each field's energy lies within a radius."""
    from matplotlib import colormaps
    from matplotlib.ticker import FuncFormatter

    reach = max(np.hypot(*field.gradient.shape) / 2 for field in fields)
    radii = np.geomspace(0.5, reach, 400)
    for index, field in enumerate(fields):
        tint = colormaps["viridis"](0.9 * index / max(1, len(fields) - 1))
        axes.plot(radii, 100 * field.profile(radii), color=tint, lw=1.8, label=field.name)
    for share in (50, 90, 95, 99):
        axes.axhline(share, color=theme.line, lw=0.7, zorder=0)
    axes.set(xscale="log", xlim=(0.5, reach), ylim=(0, 101), yticks=[0, 50, 90, 99])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("radius in pixels of the image: solid and dashed circles hold 50 and 95 % of the energy, "
                    "the dotted square is what convolutions alone can reach", fontsize=8.5)  # fmt: skip
    axes.set_ylabel("% of the energy within", fontsize=8.5)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
