"""Score a model on held-out rendered scenes, PyTorch: whole images, or cut into windows.

    python -m pipeline.demo.score [MODEL] [--scenes 20] [--height 1024] [--window SIDE]

Seeds below 1000 are held out from training (pipeline/demo/train.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from calib.data.scenes import CLASSES, Scene, render
from engines.spec import IMAGENET_MEAN, IMAGENET_STD
from pipeline.checkpoints import load_model
from pipeline.evaluation.metrics import Confusion


def score(model: nn.Module, scenes: Sequence[Scene]) -> tuple[float, dict[str, float]]:
    """Mean IoU over the classes that occur, and IoU by class; one histogram over all scenes, as in mmsegmentation."""
    confusion = Confusion(len(CLASSES))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for scene in scenes:
        x = (torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() - mean) / std
        with torch.inference_mode():
            logits = F.interpolate(model(x), size=scene.labels.shape, mode="bilinear", align_corners=False)
        confusion.update(scene.labels, logits.argmax(1)[0].to(torch.uint8).numpy())
    scores = confusion.scores(CLASSES)
    return scores.miou, {each.name: each.iou for each in scores.classes if each.iou is not None}


def windows(scene: Scene, side: int) -> list[Scene]:
    """The scene in windows of at most side x side, without overlap, row by row."""
    height, width = scene.labels.shape
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    cuts = [(slice(top, top + side), slice(left, left + side)) for top, left in corners]
    return [Scene(scene.image[cut], scene.labels[cut]) for cut in cuts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--window", type=int, help="cut the scenes into squares of this side (a multiple of 32)")
    args = parser.parse_args()
    # A SETR is made for one window.
    model = load_model(args.model, window=(args.window, args.window) if args.window else (1024, 1024)).module
    scenes = [render(seed, args.height, 2 * args.height) for seed in range(args.scenes)]
    cut = f" in windows of {args.window}" if args.window else ""
    miou, ious = score(model, [part for scene in scenes for part in windows(scene, args.window or 2 * args.height)])
    print(f"{args.scenes} scenes of {2 * args.height}x{args.height}{cut}: {100 * miou:.1f} mIoU")
    print(", ".join(f"{name} {100 * value:.1f}" for name, value in ious.items()))


if __name__ == "__main__":
    main()
