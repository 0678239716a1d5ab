"""What every checkpoint layout shares: what a reader returns, and the strict transfer of its tensors.

A layout is a module with ``NAME: str``, ``SIGNS: tuple[str, ...]``, ``matches(keys: frozenset[str]) -> bool`` and
``load(state: State, window: tuple[int, int], config: TrainingConfig) -> Parsed``; `registry` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from engines.errors import DeployError
from engines.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from pipeline.checkpoints.training_config import TrainingConfig
from pipeline.graph.endings import Ending

State = dict[str, Tensor]
Triple = tuple[float, float, float]

# BatchNorm's count of training steps: every framework stores it, inference never reads it.
_COUNTER = "num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Parsed:
    """A network with its weights (float32, eval mode, no gradients) and what its layout alone can say of it.

    module: (N, 3, H, W) float32, normalised -> logits (N, K, H/logits_stride, W/logits_stride).
    mean, std, channel_order: as in `ModelSpec`; the defaults are those of NVlabs, mmsegmentation and fudan-zvg.
    remarks: what was taken for granted, and what of the file was left out.
    """

    module: nn.Module
    architecture: str
    variant: str
    logits_stride: int
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    channel_order: str = "RGB"
    remarks: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """K: every network written here ends in ``head.classify``."""
        return self.module.get_parameter("head.classify.weight").shape[0]


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to export, and its contract.

    module: (N, 3, H, W) float32, normalised -> logits (N, K, h, w); eval mode, float32, no gradients.
    ending: what it did with them and no longer does, or None.  remarks: how the file was read, for the user.
    output: (h, w), where somebody else's code computes them.
    """

    module: nn.Module
    spec: ModelSpec
    ending: Ending | None = None
    remarks: tuple[str, ...] = ()
    output: tuple[int, int] | None = None


class Layout(Protocol):
    """A checkpoint layout: one Python module each.

    SIGNS: how the names of tensors begin that every checkpoint of it has, each below a part of the network of its own.
    """

    NAME: str
    SIGNS: tuple[str, ...]

    def matches(self, keys: frozenset[str], /) -> bool:
        """Whether a state dict with these keys has this layout; exactly one layout may say so."""

    def load(self, state: State, window: tuple[int, int], config: TrainingConfig, /) -> Parsed:
        """The network in `state`, made for (H, W) windows.  May change `state`.  Raises DeployError.

        config: what the file says of its training; asked for every constant that leaves no trace in the weights.
        """


def transfer(
    module: nn.Module,
    state: Mapping[str, Tensor],
    rename: Mapping[str, str] | Callable[[str], str],
    unused: Iterable[str] = (),
) -> None:
    """Fill `module` (which may be on the meta device) from `state`, strictly, and freeze it in eval mode.

    rename: from each of the module's own keys to the checkpoint's key; `num_batches_tracked` is never asked for.
    unused: prefixes of checkpoint keys that are known to take no part in inference.
    A matrix (O, I) and a 1x1 convolution (O, I, 1, 1) stand for each other; any other shape must be equal.
    Raises DeployError, naming the checkpoint's key, for a key that is missing or left over, a wrong shape, a dtype
    other than 16, 32 or 64 bit float, and a NaN or an infinity.
    """
    target = module.state_dict()
    source_of = rename.__getitem__ if isinstance(rename, Mapping) else rename
    sources = {ours: source_of(ours) for ours in target if not ours.endswith(_COUNTER)}
    missing = sorted(set(sources.values()) - state.keys())
    ignored = tuple(unused)
    spare = state.keys() - set(sources.values())
    left_over = sorted(key for key in spare if not key.endswith(_COUNTER) and not key.startswith(ignored))
    if missing:
        beside = f", and left over {some(left_over)}" if left_over else ""
        raise DeployError(
            f"checkpoint: got no tensor for {some(missing)}{beside}; expected a complete one of this layout, "
            "download it again, or load a modified one through a Python factory"
        )
    if left_over:
        raise DeployError(
            f"checkpoint: got {some(left_over)}, which this model has no place for; "
            "expected the published architecture (load a modified one through a Python factory)"
        )
    tensors = {ours: _fitted(state[theirs], theirs, target[ours].shape) for ours, theirs in sources.items()}
    counters = {ours: torch.zeros((), dtype=torch.int64) for ours in target if ours.endswith(_COUNTER)}
    module.load_state_dict(tensors | counters, strict=True, assign=True)
    module.eval().requires_grad_(False)


def split_rows(state: State, key: str, parts: int) -> None:
    """Replace the packed tensor `key` by its equal row blocks ``key#0``, ``key#1``, ...  Raises DeployError."""
    packed = require(state, key)
    if packed.ndim == 0 or packed.shape[0] % parts:
        raise DeployError(f"checkpoint: {key}: got shape {tuple(packed.shape)}, expected rows in {parts} equal blocks")
    del state[key]
    for index, block in enumerate(packed.chunk(parts)):
        state[f"{key}#{index}"] = block


def require(state: Mapping[str, Tensor], key: str, ndim: int | None = None) -> Tensor:
    """The tensor `key`, of `ndim` axes if that is given.  Raises DeployError."""
    if key not in state:
        raise DeployError(f"checkpoint: got no tensor for {key}; expected a complete one, download it again")
    if ndim is not None and state[key].ndim != ndim:
        raise DeployError(f"checkpoint: {key}: got shape {tuple(state[key].shape)}, expected {ndim} axes")
    return state[key]


def check_finite(tensor: Tensor, key: str) -> None:
    """Raises DeployError if a floating-point tensor holds a NaN or an infinity."""
    # One pass and no mask: in float64 the sum of float32 values cannot overflow, and NaN and infinity survive it.
    if math.isfinite(tensor.sum(dtype=torch.float64).item()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise DeployError(
        f"checkpoint: {key}: got {bad} of {tensor.numel()} values NaN or infinite, expected finite weights; "
        "the training diverged or the file is damaged"
    )


def _fitted(tensor: Tensor, key: str, shape: torch.Size) -> Tensor:
    if tensor.dtype not in _FLOATS:
        raise DeployError(f"checkpoint: {key}: got {tensor.dtype}, expected floating point; save it unquantised")
    if tensor.shape != shape and not _same_matrix(tensor.shape, shape):
        raise DeployError(f"checkpoint: {key}: got shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    # A copy: blocks of a packed tensor share one storage, and the caller keeps the state dict.
    fitted = tensor.detach().reshape(shape).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    check_finite(fitted, key)
    return fitted


def _same_matrix(a: torch.Size, b: torch.Size) -> bool:
    return {len(a), len(b)} == {2, 4} and a[:2] == b[:2] and (a[2:] or b[2:]) == (1, 1)


def some(keys: list[str]) -> str:
    """The first of many names, and how many more there are."""
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
