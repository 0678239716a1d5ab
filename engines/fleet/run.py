"""What `deploy.py run` was asked for, done where it was asked to be."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engines.backends import get_backend
from engines.bundle import open_bundle
from engines.errors import DeployError, in_a_line
from engines.files import make_folder
from engines.fleet.ray import cluster
from engines.fleet.worker import Order, Task
from engines.fleet.workers import Cluster
from engines.folder_run import RunOptions, RunPlan, run_images
from engines.gpu.visible import visible
from engines.guard.ledger import ledger
from engines.images.inputs import Input, expand, left_out
from engines.report.lines import STDOUT, Tell
from engines.report.rows import IMAGE, RASTER, VIDEO, InputRow, Rows, RunReport, contexts_of
from engines.segmenter import open_segmenter
from engines.stream.devices import on_every_gpu, own_command


def run_asked(args: argparse.Namespace, inputs: Sequence[str], loading: tuple[Any, ...], tell: Tell) -> RunReport:
    """args: of the verb.  inputs: files, folders, globs.  loading: how the bundle is opened; see `open_segmenter`."""
    images = expand(inputs, args.output, recursive=args.recursive, videos=True)
    others = left_out(inputs, args.output, recursive=args.recursive, videos=True)
    if args.ray is not None:
        report = _on_ray(args, images, loading, tell)
    elif args.device == "all":
        report = _on_every_gpu(args, images)
    else:
        report = _here(args, images, loading, tell)
    report.left_out = others
    return report


def refuse(args: argparse.Namespace) -> None:
    """Raises DeployError for options that exclude one another."""
    if args.log == STDOUT and args.json:
        raise DeployError("--log - with --json: both print to standard output; give --log a file")
    if args.stall_timeout is not None and args.ray is None:
        raise DeployError("--stall-timeout without --ray: expected a cluster whose workers it ends; give --ray too")
    if args.ray is not None and args.device is not None:
        raise DeployError("--device with --ray: got both, expected one; each worker has the GPU that Ray gives it")
    if args.device == "all" and args.log == STDOUT:
        raise DeployError("--log - with --device all: each GPU has a process of its own; give --log a file")
    if args.device == "all" and args.shard != (1, 1):
        raise DeployError("--shard with --device all: got both, expected one; all deals the images out by itself")


def _options(args: argparse.Namespace) -> RunOptions:
    return RunOptions(**{each.name: getattr(args, each.name) for each in fields(RunOptions)})


def _here(args: argparse.Namespace, images: Sequence[Input], loading: tuple[Any, ...], tell: Tell) -> RunReport:
    with open_segmenter(args.bundle, *loading) as (segmenter, manifest):
        return run_images(
            segmenter, images, args.output, _options(args), bundle=manifest.results_from, tell=tell, whole=args.json
        )


def _on_every_gpu(args: argparse.Namespace, images: Sequence[Input]) -> RunReport:
    """Each process appends its own lines to the log."""
    found = on_every_gpu(*own_command(args.words), visible())
    return RunReport.of_shards(found, [image.shown for image in images])


def _on_ray(args: argparse.Namespace, images: Sequence[Input], loading: tuple[Any, ...], tell: Tell) -> RunReport:
    """The workers write; this process looks at names, deals out and gathers."""
    threads, host_code, _, threshold, views = loading
    if streams := [image.shown for image in images if image.stream]:
        raise DeployError(f"--ray: {streams[0]} is no file, and one process reads it; run it without --ray")
    if own := [image.shown for image in images if image.path.absolute().parts[1] in ("dev", "proc")]:
        raise DeployError(f"--ray: {own[0]} is this process's own, which workers do not see; run it without it")
    options, manifest = _options(args), open_bundle(args.bundle).manifest
    manifest.spec.at_threshold(threshold).pixels.but(options.bands, options.scale)  # what is wrong with them, here
    views(manifest)
    plan = RunPlan.of(images, args.output, options)
    make_folder(args.output)
    unfinished = args.output.absolute() / f".edgeseg-{secrets.token_hex(8)}"
    order = Order(
        args.bundle.absolute(), threads=threads, host_code=host_code, threshold=threshold, views=views,
        options=options, unfinished=unfinished,
    )  # fmt: skip
    rows = Rows(tell, whole=args.json)
    for row in plan.existing:
        rows.keep(row)
    if not (plan.pictures or plan.rasters or plan.videos):
        return rows.report((image.shown for image in images), 0.0)
    with ledger.temporary(unfinished):
        try:
            with cluster(args.ray, _say) as workers:
                make_folder(unfinished)
                parts = max(2, workers.start(order, get_backend(manifest.backend).on_gpu))
                seconds = _gathered(workers, tasks(plan, options.shard, parts), rows, args.stall_timeout)
                contexts = contexts_of(workers.contexts)
        finally:
            _remove(unfinished)
    report = rows.report((image.shown for image in images), seconds)
    report.contexts = contexts
    return report


def _remove(folder: Path) -> None:
    """Though a worker that was just killed may still put a file there."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def tasks(plan: RunPlan, shard: tuple[int, int], parts: int) -> list[Task]:
    """parts: of each raster."""
    index, total = shard
    shares = [((index - 1) * parts + part + 1, total * parts) for part in range(parts)]
    named: Iterator[tuple[str, Path, Path, tuple[int, int]]] = chain(
        ((IMAGE, *pair, shard) for pair in plan.pictures.items()),
        ((RASTER, Path(name), mask, share) for name, mask in plan.rasters.items() for share in shares),
        ((VIDEO, Path(source), target, shard) for source, target in plan.videos.items()),
    )
    return [Task(at, *each) for at, each in enumerate(named)]


def _gathered(workers: Cluster, dealt: list[Task], rows: Rows, stall: float | None) -> float:
    """The seconds that images took.  stall: see `Cluster.run`."""
    seconds = 0.0
    with tqdm(total=len(dealt), unit="image", disable=None, leave=False) as bar:

        def gather(at: int, row: InputRow) -> None:
            nonlocal seconds
            rows.keep(row.renamed(str(dealt[at].path), str(dealt[at].target)))  # workers know absolute paths
            if row.kind == IMAGE and workers.begun is not None:
                seconds = time.perf_counter() - workers.begun
            bar.update()

        workers.run(dealt, gather, stall)
    return seconds


def _say(step: str, text: str) -> None:
    tqdm.write(f"{step:12}{in_a_line(text)}", file=sys.stderr)
