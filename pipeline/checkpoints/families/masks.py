"""Mask classification as a dense model: MaskFormer and Mask2Former.

Each of Q queries gives a class and a mask.  The score of a class at a pixel is the sum over queries of the class's
probability times the mask's (Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation",
NeurIPS 2021, arXiv 2107.06278, eq. 4), computed in the graph at the resolution of the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.checkpoints.families.common import FolderSource, Network, pretrained

NAME = "Hugging Face mask classification"
TYPES: tuple[str, ...] = ("mask2former", "maskformer")


def matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in TYPES


def load(source: FolderSource) -> Network:
    """(N, 3, H, W) -> scores (N, K, h, w), 0 or more; the class "nothing" takes no part."""
    return Network(ClassScores(pretrained(source, "AutoModelForUniversalSegmentation")), source.model_type)


class ClassScores(nn.Module):
    """inner: answers with ``class_queries_logits`` (N, Q, K + 1) and ``masks_queries_logits`` (N, Q, h, w).

    more: inputs that it needs besides the image.
    """

    def __init__(self, inner: nn.Module, **more: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.names = tuple(more)
        for name, value in more.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        with _StaticShapes():
            answer = self.inner(pixel_values=x, **{name: self.get_buffer(name) for name in self.names})
        classes = answer.class_queries_logits.softmax(-1)[..., :-1]
        masks = answer.masks_queries_logits.sigmoid()
        scores = classes.transpose(1, 2) @ masks.flatten(2)  # a plain product, which every backend knows
        dense: Tensor = scores.reshape(*scores.shape[:2], *masks.shape[2:])
        return dense


class _StaticShapes(TorchFunctionMode):
    """``x[torch.where(condition)] = value`` without the list of places, whose length depends on the values.

    So decoders open masks that close everything; an engine has no shapes that depend on values.  And no checks of
    values either: while a graph is captured they count as passed, as they did when the module ran before.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.where and len(args) == 1:
            return _Places(args[0])
        if func is Tensor._is_all_true and torch.compiler.is_exporting():
            return _Passed()
        if func is Tensor.__setitem__ and isinstance(args[1], _Places):
            target, places, value = args
            condition = places.condition.reshape(*places.condition.shape, *(1,) * (target.ndim - places.condition.ndim))
            if target.dtype == torch.bool:  # whose Where no runtime has
                target.copy_(target | condition if value else target & ~condition)
            else:
                target.copy_(target.masked_fill(condition, value))
            return None
        return func(*args, **(kwargs or {}))


class _Passed:
    @staticmethod
    def item() -> bool:
        return True


class _Places:
    def __init__(self, condition: Tensor) -> None:
        self.condition = condition
