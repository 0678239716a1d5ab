"""A folder through `run` against the engine alone, and against one image after the other.

    python -m benchmarks.throughput BUNDLE [--images 200] [--size 2048x1024] [--rounds 5] [--overlay]

The folder holds a few rendered scenes as PNGs, under as many names as there are images.  In each round the engine alone
runs the windows of some frames; those frames are read, segmented and written one after the other; and a part of the
folder goes through `run`.  Printed are medians over rounds, ratios taken within them, and milliseconds of processor a
frame; then what each part beside the engine takes of the processor, at its quickest: where all cores are busy, that is
what a folder costs beside its engine, however it is arranged.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.rounds import ALONE, Taken, clocked, table
from calib.data.scenes import render
from engines.folder_run import RunOptions, run_images
from engines.images.inputs import Input
from engines.images.read import read_image
from engines.images.write import label_counts, write_mask, write_overlay
from engines.machine.limits import cores
from engines.segmenter import Segmenter, open_segmenter

SCENES = 4
TRIED = 7


def _folder(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    """`count` names for a few scenes."""
    first = [folder / f"scene-{index:04}.png" for index in range(min(SCENES, count))]
    for seed, path in enumerate(first):
        Image.fromarray(render(seed, size[1], size[0]).image).save(path)
    rest = [folder / f"scene-{index:04}.png" for index in range(len(first), count)]
    for index, path in enumerate(rest):
        os.link(first[index % len(first)], path)
    return [*first, *rest]


def _alone(segmenter: Segmenter, windows: int) -> None:
    """The engine on so many windows, in full batches."""
    batch = segmenter.device.batch
    data = segmenter.first_window(np.zeros((64, 64, 3), np.uint8)).copy()
    for _ in range(-(-windows // batch)):
        segmenter.session.run(data)


def _serial(segmenter: Segmenter, paths: list[Path], output: Path, overlay: bool) -> None:
    output.mkdir(exist_ok=True)
    for path in paths:
        image = read_image(path)
        mask = segmenter.segment(image)
        write_mask(output / path.name, mask.labels, segmenter.spec.palette)
        if overlay:
            write_overlay(output / f"{path.stem}.overlay.jpg", image, mask.labels, segmenter.spec.palette)


def _of_this_thread(work: Callable[[], object]) -> float:
    """Seconds of processor."""
    used = time.thread_time()
    work()
    return time.thread_time() - used


def measure(bundle: Path, folder: Path, args: argparse.Namespace) -> dict[str, list[Taken]]:
    width, height = (int(side) for side in args.size.split("x"))
    paths = _folder(folder, (width, height), args.images)
    some = max(1, min(len(paths), args.serial))
    part = max(1, len(paths) // args.rounds)
    found: dict[str, list[Taken]] = {ALONE: [], "one after the other": [], "run": []}
    with open_segmenter(bundle, args.threads) as (segmenter, _):
        windows = sum(len(row.lefts) for row in segmenter.tiling.window_rows(height, width))
        print(f"{bundle.name}: {windows} window(s) of {segmenter.tiling.window_w}x{segmenter.tiling.window_h} a frame, "
              f"batch {segmenter.device.batch}, {args.threads or cores()} thread(s)")  # fmt: skip
        _serial(segmenter, paths[:1], folder / "masks", args.overlay)
        for turn in range(args.rounds):
            mine = [Input(path) for path in paths[turn * part : (turn + 1) * part]]
            works: dict[str, tuple[Callable[[], object], int]] = {
                ALONE: (lambda: _alone(segmenter, some * windows), some),
                "one after the other": (lambda: _serial(segmenter, paths[:some], folder / "masks", args.overlay), some),
                "run": (
                    lambda mine=mine: run_images(segmenter, mine, folder / "run", RunOptions(args.overlay)), len(mine)
                ),
            }  # fmt: skip
            for name, (work, frames) in works.items():
                found[name].append(clocked(work, frames))
    return found


def parts(bundle: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of processor of what is done with one image beside the engine."""
    width, height = (int(side) for side in args.size.split("x"))
    (path,) = _folder(folder, (width, height), 1)
    with open_segmenter(bundle, args.threads) as (segmenter, _):
        image = read_image(path)
        labels, palette = segmenter.segment(image).labels, segmenter.spec.palette
        works: dict[str, Callable[[], object]] = {
            "read": lambda: read_image(path),
            "mask": lambda: write_mask(folder / "mask.png", labels, palette),
            "shares": lambda: label_counts(labels),
            "overlay": lambda: write_overlay(folder / "overlay.jpg", image, labels, palette),
        }
        found = {name: min(_of_this_thread(work) for _ in range(TRIED)) for name, work in works.items()}
        times = []
        for _ in range(TRIED):
            running = segmenter.start(image)
            running.mask()
            times.append(running.timings)
        # On all cores, but so short that they mostly run undisturbed.
        for name in ("gather", "stitch"):
            found[f"{name} (wall)"] = min(getattr(each, name) for each in times)
    return {name: 1e3 * seconds for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--serial", type=int, default=8, help="frames of a round for the other two")
    parser.add_argument("--size", default="2048x1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--overlay", action="store_true")
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}; {args.images} PNGs of {args.size}, {args.rounds} rounds")
    for bundle in args.bundles:
        with tempfile.TemporaryDirectory(prefix="throughput-") as name:
            found = measure(bundle, Path(name), args)
        table(found)
        with tempfile.TemporaryDirectory(prefix="throughput-") as name:
            beside = parts(bundle, Path(name), args)
        print("beside the engine:", ", ".join(f"{part} {taken:.1f}" for part, taken in beside.items()), "ms")


if __name__ == "__main__":
    main()
