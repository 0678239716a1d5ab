"""The networks that `pipeline.demo.train` can train: how each is made, run on a crop, written and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from calib.data.scenes import CLASSES
from pipeline.demo.initialise import initialise
from pipeline.demo.save import load_hugging_face, save_hugging_face
from pipeline.demo.save_setr import load_mmseg, save_mmseg
from pipeline.models.segformer import SegFormer, SegFormerConfig
from pipeline.models.setr import SETR, SETRConfig, mla_taps
from pipeline.models.vit import PATCH, ViTConfig

if TYPE_CHECKING:
    import numpy as np

SETR_WINDOW = 512
DEPTH = 8  # of the 12 blocks of a ViT-Tiny or ViT-Small: the rest of the file is the decoder
WIDTHS = {"tiny": 192, "small": 384}


@dataclass(frozen=True)
class Trainee:
    """crops: (side, batch) that it is trained on.  save, load: a folder, or a file."""

    make: Callable[[], nn.Module]
    crops: tuple[tuple[int, int], ...]
    run: Callable[[nn.Module, Tensor, np.random.Generator], Tensor]
    save: Callable[[nn.Module, Path], None]
    load: Callable[[nn.Module, Path], None]


def network(name: str, encoder: str = "tiny") -> Trainee:
    """`segformer` (B0), or `setr-naive`, `setr-pup`, `setr-mla` on a ViT of that width.  Raises KeyError on others."""
    if name == "segformer":
        # Attention sees (side / 32)^2 keys, so a model trained on small crops alone would meet a thousand keys for the
        # first time in a 1024 window.
        return Trainee(
            _segformer, ((256, 8), (512, 2), (832, 1)), run=lambda model, x, _: cast(Tensor, model(x)),
            save=lambda model, path: save_hugging_face(cast(SegFormer, model), path),
            load=lambda model, path: load_hugging_face(cast(SegFormer, model), path),
        )  # fmt: skip
    config = SETRS[name](WIDTHS[encoder])
    return Trainee(
        lambda: initialise(SETR(config)), ((256, 8), (SETR_WINDOW, 2), (SETR_WINDOW, 2)), run=_run_setr,
        save=lambda model, path: save_mmseg(cast(SETR, model), path),
        load=lambda model, path: load_mmseg(cast(SETR, model), path),
    )  # fmt: skip


def _segformer() -> nn.Module:
    # Hugging Face's SegFormer has eps 1e-5 in every norm (transformers 5.24, modeling_segformer).
    return initialise(SegFormer(SegFormerConfig(classes=len(CLASSES), eps_block=1e-5, eps_stage=1e-5)))


def _vit(dim: int, taps: tuple[int, ...]) -> ViTConfig:
    window = (SETR_WINDOW, SETR_WINDOW)
    return ViTConfig(window, dim, DEPTH, mlp_dim=4 * dim, taps=taps, class_token=len(taps) == 1)


def _naive(dim: int) -> SETRConfig:
    return SETRConfig(_vit(dim, (DEPTH - 1,)), "naive", len(CLASSES), conv_bias=False, upsample=4)


def _pup(dim: int) -> SETRConfig:
    """A third of the paper's width: at half the window's resolution that is what the decoder costs."""
    return SETRConfig(_vit(dim, (DEPTH - 1,)), "pup", len(CLASSES), channels=96, stages=4, kernel=3, conv_bias=False)


def _mla(dim: int) -> SETRConfig:
    return SETRConfig(_vit(dim, mla_taps(DEPTH)), "mla", len(CLASSES), channels=128, head_channels=64, upsample=4)


SETRS: dict[str, Callable[[int], SETRConfig]] = {"setr-naive": _naive, "setr-pup": _pup, "setr-mla": _mla}


def _run_setr(model: nn.Module, x: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop smaller than the window is a piece of it, at a place drawn anew, and gets that piece's positions."""
    setr = cast(SETR, model)
    rows, columns = x.shape[2] // PATCH, x.shape[3] // PATCH
    if (rows, columns) == setr.config.vit.grid:
        return cast(Tensor, setr(x))
    height, width = setr.config.vit.grid
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    position = setr.encoder.position
    first = int(setr.config.vit.class_token)
    grid = position[:, first:].reshape(1, height, width, -1)[:, top : top + rows, left : left + columns]
    piece = torch.cat((position[:, :first], grid.flatten(1, 2)), 1)
    vit = replace(setr.config.vit, window=(rows * PATCH, columns * PATCH))
    with torch.device("meta"):
        smaller = SETR(replace(setr.config, vit=vit)).train(setr.training)
    tensors = dict(setr.named_parameters()) | dict(setr.named_buffers()) | {"encoder.position": piece}
    return cast(Tensor, functional_call(smaller, tensors, (x,)))
