"""One folder through one process on all cores, through a shard a core, and through a worker of a Ray cluster a core.

    python -m benchmarks.fleet BUNDLE [--images 48] [--size 1024x512] [--rounds 3] [--json FILE]

Each is the command line that a user types, in turns within a round.  Printed are medians over rounds: images a second
from the first read to the last write (of the shards: of the slower one), and of the whole command with its start.  Then
what the driver of a cluster takes of the processor for an image: --many tiny files, less what it takes for one.  And
the memory that it takes: 20 000 names and rows, as they are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.throughput import _folder
from engines.fleet.run import tasks
from engines.folder_run import RunPlan
from engines.images.inputs import Input, output_names
from engines.machine.limits import cores
from engines.report.rows import IMAGE, ImageReport, InputRow, Rows

ROOT = Path(__file__).parent.parent


def _command(bundle: Path, images: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "deploy.py"), "run", str(bundle), str(images), "-o", str(out), "--json", *more]


def _timed(*commands: list[str]) -> tuple[float, float]:
    """Seconds between reading and writing of the slowest, and of all with their start; run side by side."""
    begin = time.perf_counter()
    # In sessions of their own, as Ray's workers are: on a busy machine Linux shares cores out among sessions.
    running = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True, start_new_session=True) for each in commands]
    reports = [json.loads(each.communicate()[0]) for each in running]
    whole = time.perf_counter() - begin
    assert not any(report["failed"] for report in reports)
    return max(report["seconds"] for report in reports), whole


def scaling(bundle: Path, images: Path, out: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    count = cores()
    ways = {
        f"one process, {count} threads": [()],
        f"{count} shards of one thread": [
            ("--threads", "1", "--shard", f"{index + 1}/{count}") for index in range(count)
        ],
        f"Ray, {count} workers of one thread": [("--ray", "--threads", "1")],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, each in ways.items():
            found[name].append(_timed(*(_command(bundle, images, out, *words) for words in each)))
    return found


def driver(bundle: Path, folder: Path, many: int) -> float:
    """Seconds of processor of the driver for an image, its workers and Ray's own processes left out."""
    used = []
    for count in (1, many):
        images = folder / f"tiny-{count}"
        images.mkdir()
        _folder(images, (64, 64), count)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _timed(_command(bundle, images, folder / f"out-{count}", "--ray", "--threads", "1"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return (used[1] - used[0]) / (many - 1)


def held(count: int, *, whole: bool) -> tuple[float, float]:
    """Bytes that the driver holds for an image: its names and tasks, and its row.  whole: with `--json`."""
    rng, kept = np.random.default_rng(0), Rows(lambda row: None, whole=whole)
    tracemalloc.start()
    images = [Input(Path(f"/data/set/photos/street/{index:08d}.png")) for index in range(count)]
    plan = RunPlan(
        {path: Path("masks") / name for path, name in output_names(images, Path("masks")).items()}, {}, {}, []
    )
    held_tasks = tasks(plan, (1, 1), 2)
    names, _ = tracemalloc.get_traced_memory()
    for task in held_tasks:
        times = rng.uniform(1, 100, 14).tolist()
        report = ImageReport(
            str(task.path), str(task.target), 2048, 1024, 3, {f"class {at}": times[at] for at in range(8)}, *times[8:]
        )
        kept.keep(pickle.loads(pickle.dumps(InputRow(IMAGE, report.input, report.mask, report))))
    both, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return names / count, (both - names) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", default="1024x512", metavar="WxH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=0, metavar="N", help="tiny files for the driver's share")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    print(f"{date.today()}, {cores()} cores, load {os.getloadavg()[0]:.1f}, {args.images} PNGs of {args.size}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        _folder(folder / "images", (width, height), args.images)
        found = scaling(args.bundle, folder / "images", folder / "out", args.rounds)
        share = driver(args.bundle, folder, args.many) if args.many else None
    first = next(iter(found.values()))
    for way, times in found.items():
        inner, whole = (statistics.median(args.images / each[part] for each in times) for part in (0, 1))
        ratios = [one[0] / each[0] for one, each in zip(first, times, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        print(f"{way:32}{inner:8.2f} images/s, {spread} of one process; {whole:.2f} with its start", flush=True)
    if share is not None:
        print(f"the driver: {1e3 * share:.2f} ms of processor an image")
    memory = {name: held(20_000, whole=whole) for name, whole in (("totals", False), ("--json", True))}
    for name, (names, row) in memory.items():
        print(f"the driver holds of an image: {names:.0f} bytes of names, {row:.0f} of its row ({name})")
    if args.json:
        body = {"date": str(date.today()), "found": found, "driver": share, "memory": memory}
        args.json.write_text(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
