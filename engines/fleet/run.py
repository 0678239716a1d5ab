"""What `deploy.py run` was asked for, done where it was asked to be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from engines.errors import DeployError
from engines.folder_run import RunOptions, run_images
from engines.gpu.visible import visible
from engines.images.inputs import Input, expand, left_out
from engines.report.lines import STDOUT, Tell
from engines.report.rows import RunReport
from engines.segmenter import open_segmenter
from engines.stream.devices import on_every_gpu, own_command


def run_asked(args: argparse.Namespace, inputs: Sequence[str], loading: tuple[Any, ...], tell: Tell) -> RunReport:
    """args: of the verb.  inputs: files, folders, globs.  loading: how the bundle is opened; see `open_segmenter`."""
    images = expand(inputs, args.output, recursive=args.recursive, videos=True)
    report = _on_every_gpu(args, images) if args.device == "all" else _here(args, images, loading, tell)
    report.left_out = left_out(inputs, args.output, recursive=args.recursive, videos=True)
    return report


def refuse(args: argparse.Namespace) -> None:
    """Raises DeployError for options that exclude one another."""
    if args.log == STDOUT and args.json:
        raise DeployError("--log - with --json: both print to standard output; give --log a file")
    if args.device == "all" and args.log == STDOUT:
        raise DeployError("--log - with --device all: each GPU has a process of its own; give --log a file")
    if args.device == "all" and args.shard != (1, 1):
        raise DeployError("--shard with --device all: got both, expected one; all deals the images out by itself")


def _here(args: argparse.Namespace, images: Sequence[Input], loading: tuple[Any, ...], tell: Tell) -> RunReport:
    options = RunOptions(**{each.name: getattr(args, each.name) for each in fields(RunOptions)})
    with open_segmenter(args.bundle, *loading) as (segmenter, manifest):
        return run_images(segmenter, images, args.output, options, bundle=manifest.files, tell=tell)


def _on_every_gpu(args: argparse.Namespace, images: Sequence[Input]) -> RunReport:
    """Each process appends its own lines to the log."""
    found = on_every_gpu(*own_command(args.words), visible())
    return RunReport.of_shards(found, [image.shown for image in images])
