"""Train a demo model from scratch on rendered scenes, on whatever is at hand.

    python -m pipeline.demo.train --out PATH [--model segformer] [--minutes 45] [--seed 0] [--start PATH] [--bf16]

`--model`: segformer (B0; PATH is a Hugging Face folder), or setr-naive, setr-pup, setr-mla on a narrow ViT
(`--encoder tiny` or small) with windows of 512 (PATH is a .pth of mmsegmentation).  The budget is wall-clock time, so
the result depends on the machine.  Scenes are rendered once into memory; crops of them are flipped and jittered.
`--start` goes on from an earlier result with a gentler recipe; give it another seed, so that it sees other scenes. What
is written, in fp16, is the exponential moving average of the weights, with BatchNorm statistics estimated again for
exactly those weights.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calib.data.scenes import CLASSES, Scene, render
from engines.spec import IMAGENET_MEAN, IMAGENET_STD
from pipeline.demo.networks import SETRS, WIDTHS, Trainee, network

SCENES = 500
WARMUP, DECAY = 0.04, 0.03
SAVE_MINUTES = 10
FIRST_SEED = 1000  # held-out scenes have lower seeds

Forward = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """shares: of the steps, for each of the network's crops.  balance: class weights are frequency ** -balance."""

    shares: tuple[float, float, float]
    peak_rate: float
    balance: float


FROM_SCRATCH = Recipe((0.55, 0.35, 0.1), 1.2e-3, 0.4)
# Strong weights teach small classes early, but leave halos round poles and signs.
CONTINUED = Recipe((0.3, 0.4, 0.3), 6e-4, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=("segformer", *SETRS), default="segformer")
    parser.add_argument("--encoder", choices=tuple(WIDTHS), default="tiny", help="of a SETR")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="what this script wrote, to go on from")
    parser.add_argument("--bf16", action="store_true", help="autocast on the CPU too; pays where bf16 is native")
    args = parser.parse_args()
    subject = network(args.model, args.encoder)
    model, steps = train(subject, args.minutes, args.seed, out=args.out, begin=args.start, bf16=args.bf16)
    subject.save(model, args.out)
    print(f"{steps} steps; written to {args.out}")


def train(
    subject: Trainee, minutes: float, seed: int, out: Path, begin: Path | None, bf16: bool
) -> tuple[nn.Module, int]:
    """Returns the averaged model in eval mode and the number of steps.  Saves to `out` every SAVE_MINUTES."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = CONTINUED if begin else FROM_SCRATCH
    model = subject.make()
    if begin:
        subject.load(model, begin)
    model.to(device)
    scenes = _render_pool(seed)
    rng = np.random.default_rng(seed)
    batches = _batches(scenes, subject.crops, recipe.shares, rng, device)
    average = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}])
    weight = _class_weights(scenes, recipe.balance).to(device)

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16 or x.device.type == "cuda"):
            return subject.run(module, x, rng)

    start, saved, step, losses = time.monotonic(), 0.0, 0, []
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = recipe.peak_rate * (progress / WARMUP if progress < WARMUP else 0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses.append(_step(model, forward, optimizer, next(batches), weight))
        step += 1
        _follow(average, model, min(0.999, (1 + step) / (10 + step)))
        if step % 50 == 0:
            print(f"{60 * minutes * progress:6.0f} s  step {step}  loss {np.mean(losses[-50:]):.4f}", flush=True)
        if progress * minutes - saved >= SAVE_MINUTES:
            saved = progress * minutes
            subject.save(_finished(average, forward, batches), out)
    return _finished(average, forward, batches), step


def _step(
    model: nn.Module, forward: Forward, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], weight: Tensor
) -> float:
    x, y = batch
    model.train()
    logits = forward(model, x)
    logits = F.interpolate(logits.float(), size=y.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, y, weight)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for ours, theirs in zip(average.parameters(), model.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)


@torch.no_grad()
def _finished(average: nn.Module, forward: Forward, batches: Iterator[tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy on the CPU whose BatchNorm statistics are those of its own (averaged) weights."""
    model = copy.deepcopy(average)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # cumulative mean over the batches below
            module.train()
    for _ in range(20):
        forward(model, next(batches)[0])
    return model.eval().cpu()


def _render_pool(seed: int) -> list[Scene]:
    """Scenes at many scales, so that the model knows both 512 and 1024 pixel high streets."""
    rng = np.random.default_rng(seed)
    heights = np.exp(rng.uniform(np.log(320), np.log(1100), SCENES)).astype(int)
    widths = (heights * rng.uniform(1.0, 1.8, SCENES)).astype(int)
    with ProcessPoolExecutor() as pool:
        seeds = range(FIRST_SEED + seed * SCENES, FIRST_SEED + (seed + 1) * SCENES)
        return list(pool.map(render, seeds, heights.tolist(), widths.tolist(), chunksize=8))


def _batches(
    scenes: list[Scene],
    crops: tuple[tuple[int, int], ...],
    shares: tuple[float, ...],
    rng: np.random.Generator,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """x: (B, 3, side, side) float32 normalised, y: (B, side, side) int64."""
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    fitting = {side: [scene for scene in scenes if min(scene.labels.shape) >= side] for side, _ in crops}
    while True:
        side, batch = crops[int(rng.choice(len(crops), p=shares))]
        xs, ys = [], []
        for _ in range(batch):
            scene = fitting[side][int(rng.integers(len(fitting[side])))]
            top = int(rng.integers(scene.labels.shape[0] - side + 1))
            left = int(rng.integers(scene.labels.shape[1] - side + 1))
            step = -1 if rng.random() < 0.5 else 1
            window = (slice(top, top + side), slice(left, left + side))
            image, labels = scene.image[window][:, ::step], scene.labels[window][:, ::step]
            x = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
            gain = torch.from_numpy(rng.uniform(0.8, 1.2, (3, 1, 1)).astype(np.float32))
            xs.append((x * gain - mean) / std)
            ys.append(torch.from_numpy(labels.copy()).long())
        yield torch.stack(xs).to(device), torch.stack(ys).to(device)


def _class_weights(scenes: list[Scene], balance: float) -> Tensor:
    counts = np.zeros(len(CLASSES))
    for scene in scenes:
        counts += np.bincount(scene.labels.ravel(), minlength=len(CLASSES))
    weight = torch.tensor((counts / counts.sum()) ** -balance, dtype=torch.float32)
    return weight / weight.mean()


if __name__ == "__main__":
    main()
