"""A video through `run` against its parts alone, and against the loop of the demos that people start from.

    python -m benchmarks.video BUNDLE [--frames 24] [--size 1280x720] [--rounds 3]

The clip is rendered scenes as H.264.  In each round, on the same frames: decoding alone; the engine and its tiling
alone; read, segment, blend, encode, one after the other, as mmsegmentation's video demo does it (here with PyAV for
OpenCV, and our engine: what is compared is the order of the work); and `run --overlay`.  Printed are medians over
rounds of frames a second, the share of the engine's rate, taken within rounds, and milliseconds of processor a frame.
The last line is `run` with an engine that costs nothing: as many frames a second as the video side has.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.rounds import ALONE, Taken, clocked, table
from calib.data.scenes import render
from engines.images.write import overlay
from engines.machine.limits import cores
from engines.segmenter import Segmenter, open_segmenter
from engines.tiling.device import Mask, Timings
from engines.video.av_write import Look, write_grey, write_picture
from engines.video.frames import VideoInfo
from engines.video.open import open_video
from engines.video.report import VideoOptions
from engines.video.run import run_video

RATE = Fraction(25)
SCENES = 4


def _clip(path: Path, width: int, height: int, frames: int) -> None:
    """Scenes that move to the left."""
    scenes = [render(seed, height, width).image for seed in range(SCENES)]
    with write_picture(path, (height, width), VideoInfo(width, height, RATE, 1 / RATE)) as file:
        for index in range(frames):
            scene = scenes[index * SCENES // frames]
            file.add(np.ascontiguousarray(np.roll(scene, -4 * index, axis=1)), index / RATE)
        file.finish()


def _decode(path: Path) -> list[Any]:
    with open_video(path) as video:
        return [frame.picture.pixels for frame in video.frames()]


def _one_after_the_other(segmenter: Segmenter, path: Path, out: Path) -> None:
    spec = segmenter.spec
    look = Look(spec.classes, spec.palette)
    with open_video(path) as video:
        size = (video.info.height, video.info.width)
        with (
            write_grey(out / "a.mkv", size, video.info, look) as grey,
            write_picture(out / "a.mp4", size, video.info) as shown,
        ):
            for frame in video.frames():
                pixels = frame.picture.pixels
                labels = segmenter.segment(pixels).labels
                grey.add(labels, frame.time)
                shown.add(overlay(pixels, labels, spec.palette), frame.time)
            grey.finish()
            shown.finish()


class _Free:
    """A segmenter whose labels cost nothing: those of one frame, again and again."""

    def __init__(self, segmenter: Segmenter, labels: Any) -> None:
        self.spec, self.device, self._labels = segmenter.spec, segmenter.device, labels

    def start(self, image: Any, confidence: bool = False) -> Any:
        return SimpleNamespace(timings=Timings(), views=(), done=True, mask=lambda: Mask(self._labels.copy()))


def measure(bundle: Path, folder: Path, args: argparse.Namespace) -> dict[str, list[Taken]]:
    width, height = (int(side) for side in args.size.split("x"))
    clip, options = folder / "clip.mp4", VideoOptions(overlay=True)
    _clip(clip, width, height, args.frames)
    pictures = _decode(clip)
    with open_segmenter(bundle, args.threads) as (segmenter, _):
        windows = sum(len(row.lefts) for row in segmenter.tiling.window_rows(height, width))
        print(f"{bundle.name}: {windows} window(s) of {segmenter.tiling.window_w}x{segmenter.tiling.window_h} a frame")
        free: Any = _Free(segmenter, segmenter.segment(pictures[0]).labels)
        target = folder / "clip.labels.mkv"
        works: dict[str, Callable[[], object]] = {
            ALONE: lambda: [segmenter.segment(picture) for picture in pictures],
            "decoding alone": lambda: _decode(clip),
            "one after the other": lambda: _one_after_the_other(segmenter, clip, folder),
            "run --overlay": lambda: run_video(segmenter, str(clip), target, options),
            "run, engine for free": lambda: run_video(free, str(clip), target, options),
        }
        found: dict[str, list[Taken]] = {name: [] for name in works}
        for _ in range(args.rounds):
            for name, work in works.items():
                found[name].append(clocked(work, args.frames))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {args.threads or cores()} thread(s); {args.frames} frames of {args.size}")
    with tempfile.TemporaryDirectory(prefix="video-") as name:
        found = measure(args.bundle, Path(name), args)
    table(found, rate=True)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
