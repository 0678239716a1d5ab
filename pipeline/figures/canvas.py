"""Paper and pen of every picture: a figure without a window, its style, and its bytes."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError
from engines.machine.interpreter import pip_install
from pipeline.figures.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raise DeployError, naming the command that gets it, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DeployError(f"picture: matplotlib is not installed; {pip_install('report')}")


def title(axes: Axes, theme: Theme, text: str, subtitle: str) -> None:
    axes.set_title(text, loc="left", fontsize=13, weight="bold", color=theme.ink, pad=26)
    axes.annotate(subtitle, (0, 1), xycoords="axes fraction", xytext=(0, 9), textcoords="offset points",
                  color=theme.muted, fontsize=9.5)  # fmt: skip


def style(theme: Theme) -> Any:
    """A context in which figures are drawn."""
    import matplotlib as mpl

    return mpl.rc_context({
        "font.family": "DejaVu Sans", "font.size": 10, "text.color": theme.ink, "svg.fonttype": "none",
        "svg.hashsalt": "edgeseg", "figure.facecolor": theme.paper, "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line, "axes.labelcolor": theme.muted, "xtick.color": theme.muted,
        "ytick.color": theme.muted, "xtick.labelcolor": theme.ink, "ytick.labelcolor": theme.ink,
        "axes.spines.top": False, "axes.spines.right": False, "legend.labelcolor": theme.ink,
    })  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    """Inches.  Not through pyplot, which would choose a window system and keep the figure alive."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def encoded(figure: Figure, kind: str) -> bytes:
    """The figure as a file of `kind`, png or svg."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(buffer, format=kind, dpi=170, metadata=metadata)
    return buffer.getvalue()
