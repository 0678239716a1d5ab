"""Stitching one frame: this project's C core against PyTorch doing what mmsegmentation's slide mode does.

    python benchmarks/stitch.py [--rounds 15] [--classes 19] [--json FILE]

2048x1024 pixels, three windows of 1024 at stride 768, logits at a quarter.  Rounds are interleaved on the same cores;
medians are reported.  Labels must be equal wherever the top two classes differ by 1e-4 or more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from engines.tiling import core
from engines.tiling.placement import Tiling

SIZE, WINDOW = (1024, 2048), (1024, 1024)


def reference(logits: list[np.ndarray], lefts: list[int]) -> tuple[np.ndarray, torch.Tensor]:
    total = torch.zeros(1, logits[0].shape[0], *SIZE)
    count = torch.zeros(1, 1, *SIZE)
    for values, left in zip(logits, lefts, strict=True):
        crop = F.interpolate(torch.from_numpy(values)[None], WINDOW, mode="bilinear", align_corners=False)
        total += F.pad(crop, (left, SIZE[1] - left - WINDOW[1], 0, 0))
        count[:, :, :, left : left + WINDOW[1]] += 1
    mean = total / count
    return mean.argmax(1)[0].to(torch.uint8).numpy(), mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    tops, lefts = Tiling(*WINDOW, 768, 768).placements(*SIZE)
    rng = np.random.default_rng(0)
    coarse = [torch.from_numpy(rng.standard_normal((1, args.classes, 24, 24), dtype=np.float32)) for _ in lefts]
    logits = [5 * F.interpolate(c, (256, 256), mode="bicubic")[0].numpy() for c in coarse]
    logits = [np.ascontiguousarray(values) for values in logits]

    def ours(count: int, confidence: bool = False) -> np.ndarray:
        return core.stitch(logits, tops * len(lefts), lefts, WINDOW, SIZE, threads=count, confidence=confidence)[0]

    runners = {
        f"PyTorch, {threads} threads": lambda: reference(logits, lefts)[0],
        "C core, 1 thread": lambda: ours(1),
        f"C core, {threads} threads": lambda: ours(threads),
        f"C core with confidence, {threads} threads": lambda: ours(threads, True),
    }
    expected, mean = reference(logits, lefts)
    top2 = mean.topk(2, dim=1).values[0]
    clear = (top2[0] - top2[1] >= 1e-4).numpy()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(args.rounds):
        for name, runner in runners.items():
            begin = time.perf_counter()
            labels = runner()
            seconds[name].append(time.perf_counter() - begin)
            assert np.array_equal(labels[clear], expected[clear]), f"{name}: labels differ"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = next(iter(medians.values()))
    print(f"{date.today()}, {args.classes} classes, {args.rounds} rounds, core: {core.build_info()}; "
          f"labels equal on all {clear.sum()} pixels that are not near-ties ({(~clear).sum()} are)")  # fmt: skip
    for name, value in medians.items():
        print(f"{name:38}{1e3 * value:9.1f} ms{base / value:9.1f} x")
    if args.json:
        rows = [{"name": name, "ms": 1e3 * value, "ratio": base / value} for name, value in medians.items()]
        args.json.write_text(json.dumps({"date": str(date.today()), "threads": threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
