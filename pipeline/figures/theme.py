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
    paper="#ffffff", ink="#1b1f24", muted="#667080", line="#d5dae1", soft="#f4f6f9",
    precisions={
        "fp32": "#2f6fdb", "fp16": "#7a4fc0", "bf16": "#0b8a72", "int8": "#d9650b",
        "fp8": "#8c6d00", "auto": "#c22e7d",
    },
)  # fmt: skip
DARK = Theme(
    paper="#14171c", ink="#e8ebf0", muted="#98a2b3", line="#343b46", soft="#1d2229",
    precisions={
        "fp32": "#6ea3ff", "fp16": "#b594f5", "bf16": "#3ec9ac", "int8": "#ff9a4d",
        "fp8": "#e0c040", "auto": "#f277b6",
    },
)  # fmt: skip


def colour(theme: Theme, precision: str, reference: bool) -> str:
    """Of a row's mark; the reference is grey, since it is what the others are seen against."""
    return theme.muted if reference else theme.precisions.get(precision, theme.ink)
