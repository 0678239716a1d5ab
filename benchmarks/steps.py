"""What the 256 steps of `--scale` cost of a picture that has more: the demo's labels on exact and on rounded values.

usage: python -m benchmarks.steps [--scenes 6] [--side 512]

A scene rendered at four times the side is averaged to it, so that its values lie between the steps of 8 bits, as those
of a 16-bit file do.  Where `--scale` is wider than the picture's values, these span fewer steps.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from calib.data.scenes import render
from pipeline.checkpoints import load_model

NEAR_TIE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--side", type=int, default=512)
    args = parser.parse_args()
    loaded = load_model("demo", window=(args.side, args.side))
    mean, std = np.array(loaded.spec.mean), np.array(loaded.spec.std)
    steps = (256, 128, 64, 32, 16)
    equal = {used: [] for used in steps}  # type: dict[int, list[tuple[float, float]]]
    for seed in range(args.scenes):
        fine = render(seed, 4 * args.side, 4 * args.side).image.astype(np.float64)
        values = fine.reshape(args.side, 4, args.side, 4, 3).mean((1, 3))
        exact = _logits(loaded.module, (values - mean) / std)
        ranked = np.sort(exact, 0)
        clear = ranked[-1] - ranked[-2] > NEAR_TIE * np.abs(exact).max()
        for used in steps:
            rounded = np.rint(values * used / 256) * 256 / used
            same = _logits(loaded.module, (rounded - mean) / std).argmax(0) == exact.argmax(0)
            equal[used].append((same.mean(), same[clear].mean()))
    print("| steps that the picture spans | labels | off near-ties |\n|---|---|---|")
    for used, found in equal.items():
        every, off = (100 * float(np.mean(each)) for each in zip(*found, strict=True))
        print(f"| {used} | {every:.2f} % | {off:.2f} % |")


def _logits(module: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    window = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.inference_mode():
        return module(window)[0].numpy()  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
