"""Colours of the picture and of the page: the same row has the same colour in both, in light and in dark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    paper: str
    ink: str
    muted: str
    line: str
    soft: str
    precisions: dict[str, str]


# One hue each, apart for colour-blind readers too, readable on the paper.
LIGHT = Theme(
    "#ffffff", "#1b1f24", "#667080", "#d5dae1", "#f4f6f9",
    {"fp32": "#2f6fdb", "fp16": "#7a4fc0", "bf16": "#0b8a72", "int8": "#d9650b", "auto": "#c22e7d"},
)  # fmt: skip
DARK = Theme(
    "#14171c", "#e8ebf0", "#98a2b3", "#343b46", "#1d2229",
    {"fp32": "#6ea3ff", "fp16": "#b594f5", "bf16": "#3ec9ac", "int8": "#ff9a4d", "auto": "#f277b6"},
)  # fmt: skip


def colour(theme: Theme, precision: str, reference: bool) -> str:
    """Of a row's mark; the reference is grey, since it is what the others are seen against."""
    return theme.muted if reference else theme.precisions.get(precision, theme.ink)
