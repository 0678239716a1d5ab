"""Rendered scenes as a labelled data set on disk: DIR/images and DIR/labels.

    python -m benchmarks.scenes DIR [--first 0] [--count 12] [--size 2048x1024]

The demo model was trained on seeds from 1000, so lower ones are held out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from calib.data.scenes import PALETTE, render
from engines.images.write import write_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--size", default="2048x1024")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    for kind in ("images", "labels"):
        (args.folder / kind).mkdir(parents=True)
    for seed in range(args.first, args.first + args.count):
        scene = render(seed, height, width)
        Image.fromarray(scene.image).save(args.folder / "images" / f"scene-{seed}.png")
        write_mask(args.folder / "labels" / f"scene-{seed}.png", scene.labels, PALETTE)


if __name__ == "__main__":
    main()
