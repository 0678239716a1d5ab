"""Twelve views of a frame beside one: memory, and all that is not the engine.

    python -m benchmarks.views [--classes 150] [--size 2048x1024] [--bundle BUNDLE] [--json FILE]

2048x1024 pixels, windows of 1024 at stride 768, logits at a quarter, mmsegmentation's six scales with their mirror
images.  Memory is the peak of a process of its own with an engine that costs nothing: it answers every window with the
same logits.  What an image takes on a GPU is laid out, and needs none; it is that of logits in FP16, one window a run.
With --bundle the frame also goes through that bundle's engine, which says what share of the time is spent
outside of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

from engines.gpu.views.layout import ViewsPlan, WindowLogits
from engines.machine.limits import cores
from engines.measure.worker import _peak_bytes as peak_bytes
from engines.segmenter import Segmenter, open_segmenter
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from engines.views.schedule import Schedule
from engines.views.views import SCALES, ImageViews

ROOT = Path(__file__).parent.parent
VIEWS = ImageViews(scales=SCALES, flip=True)


class Cheap:
    """The same logits for every window."""

    def __init__(self, classes: int) -> None:
        rng = np.random.default_rng(0)
        self.logits = 3 * rng.standard_normal((1, classes, 256, 256), dtype=np.float32)

    def run(self, windows: np.ndarray) -> np.ndarray:
        return self.logits


def alone(classes: int, size: tuple[int, int], views: bool) -> dict[str, float]:
    """In this process: peak memory in bytes, milliseconds outside of the engine."""
    palette = tuple((k, k, k) for k in range(classes))
    spec = ModelSpec("benchmark", "", tuple(map(str, range(classes))), palette)
    segmenter = Segmenter.on_host(Cheap(classes), spec, Tiling(1024, 1024, 768, 768))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    running = (segmenter.on_views(VIEWS) if views else segmenter).start(image)
    running.mask()
    times = running.timings
    return {"peak": peak_bytes(), "gather_ms": 1e3 * times.gather, "stitch_ms": 1e3 * times.stitch,
            "windows": times.windows}  # fmt: skip


def measured(classes: int, size: tuple[int, int], views: bool) -> dict[str, float]:
    """`alone` in a process of its own."""
    code = f"import json; from benchmarks.views import alone; print(json.dumps(alone({classes}, {size}, {views})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def share_outside(bundle: Path, size: tuple[int, int]) -> dict[str, float]:
    """Of the twelve views' time in the bundle's engine: of the first image, and of one after it."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found: dict[str, float] = {}
    with open_segmenter(bundle, views=lambda manifest: VIEWS) as (segmenter, _):
        for name in ("first", "later"):
            begin = time.perf_counter()
            running = segmenter.start(image)
            running.mask()
            whole, engine = 1e3 * (time.perf_counter() - begin), 1e3 * running.timings.engine
            found |= {f"{name}_frame_ms": whole, f"{name}_engine_ms": engine, f"{name}_outside": 1 - engine / whole}
    return found | {"windows": running.timings.windows}


def on_a_gpu(classes: int, size: tuple[int, int]) -> ViewsPlan:
    tiling = Tiling(1024, 1024, 768, 768)
    schedule = Schedule.of(size[0], VIEWS.of(*size, tiling.labelled), tiling)
    return ViewsPlan.of(
        schedule, size=size, pixel=4, channels=3, windows=WindowLogits(1, 2 * classes * 256 * 256, classes, (256, 256)),
        direct=False, confidence=True, made_here=True, copied=True, shared=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--size", default="2048x1024", metavar="WxH")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    one, twelve = (measured(args.classes, (height, width), views) for views in (False, True))
    print(f"{date.today()}, {args.size}, {args.classes} classes, {cores()} cores")
    for name, row in (("one view", one), ("twelve views", twelve)):
        print(f"{name:14}{row['peak'] / 1e6:8.0f} MB, {row['windows']:.0f} windows, outside of the engine: "
              f"gather {row['gather_ms']:.0f} ms, stitch {row['stitch_ms']:.0f} ms")  # fmt: skip
    print(f"{'':14}{twelve['peak'] / one['peak']:8.2f} times the memory")
    plan = on_a_gpu(args.classes, (height, width))
    print(f"{'on a GPU':14}{plan.device / 1e6:8.0f} MB, {plan.logits / 1e6:.0f} of them logits")
    result = {"date": str(date.today()), "one": one, "twelve": twelve, "gpu_bytes": plan.device}
    if args.bundle:
        result["bundle"] = found = share_outside(args.bundle, (height, width))
        for name in ("first", "later"):
            print(f"{args.bundle}: {name} image {found[f'{name}_frame_ms']:.0f} ms, {found['windows']:.0f} windows, "
                  f"{100 * found[f'{name}_outside']:.1f} % outside of the engine")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
