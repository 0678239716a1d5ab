"""How the command line wants labels read; without torch, which `evaluate` does not need."""

from __future__ import annotations

import argparse

from calib.data.datasets import LabelOptions
from calib.data.label_map import LabelMap, read_label_map


def label_map(args: argparse.Namespace) -> LabelMap | None:
    return None if args.label_map is None else read_label_map(args.label_map)


def label_options(args: argparse.Namespace) -> LabelOptions:
    return LabelOptions(
        tuple(args.ignore_label), args.reduce_zero_label, args.label_colors, as_stored=args.as_stored
    )  # fmt: skip
