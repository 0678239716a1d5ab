"""What `plan` predicts of a bundle, beside what frames then take, size by size.

    python -m benchmarks.plan BUNDLE [--sizes 1024x1024,2048x1024] [--rounds 7] [--json FILE]

The two windows that costs are measured on and the frame that is predicted take turns, as `bench` times them, and each
round is judged by itself: on a machine that others use, what a window takes changes from minute to minute, and a
prediction can only be of the minute in which it was made.
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date
from pathlib import Path

import numpy as np

from engines.arguments.values import width_height
from engines.bundle import open_bundle
from engines.machine.sysfs import cpu_name
from engines.measure.worker import Worker
from engines.plan.measure import costs_of, sample
from engines.plan.predict import predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sizes", default="512x512,1024x1024,1280x720,1920x1080,2048x1024")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    manifest = open_bundle(args.bundle).manifest
    tiling, two = manifest.tiling, sample(manifest.tiling)
    print(f"{date.today()}, {cpu_name()}, {manifest.precision}, window {tiling.window_h}x{tiling.window_w}, "
          f"stride {tiling.stride_h}x{tiling.stride_w}, {args.rounds} rounds")  # fmt: skip
    print(f"{'size':>12}{'windows':>9}{'ms said':>9}{'ms':>9}{'off':>8}{'worst':>8}{'MB said':>9}{'MB':>7}{'off':>8}")
    rows = []
    for text in args.sizes.split(","):
        size = width_height(text)
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        with Worker(args.bundle) as worker:
            worker.put(two)
            worker.frame()
            before = worker.frame()
            peak = worker.peak_bytes()
            said, took, off = [], [], []
            for _ in range(args.rounds):
                worker.put(image)
                frame = worker.frame()
                worker.put(two)
                after = worker.frame()
                costs = costs_of(manifest, "", peak, [before, after], [before, after])
                found = predict(costs, tiling, manifest.output_shape, size)
                said.append(found.frame_ms)
                took.append(frame.frame_ms)
                off.append(found.frame_ms / frame.frame_ms - 1)
                before = after
            worker.put(image)
            worker.frames(2)
            held = worker.peak_bytes()
        assert frame.windows == found.windows
        row = {"size": text, "windows": found.windows, "said_ms": statistics.median(said),
               "ms": statistics.median(took), "off": statistics.median(off), "worst": max(off, key=abs),
               "said_bytes": found.peak_bytes, "bytes": held}  # fmt: skip
        rows.append(row)
        print(f"{text:>12}{found.windows:>9}{row['said_ms']:>9.0f}{row['ms']:>9.0f}{100 * row['off']:>7.1f}%"
              f"{100 * row['worst']:>7.1f}%{found.peak_bytes / 1e6:>9.0f}{held / 1e6:>7.0f}"
              f"{100 * (found.peak_bytes / held - 1):>7.1f}%")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"date": str(date.today()), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
