"""transformers' networks that return a map of logits: UperNet, DPT, BEiT, Data2Vec, MobileViT, MobileNetV2, Sapiens 2.

What they have in common is ``AutoModelForSemanticSegmentation``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.checkpoints.families.common import FolderSource, LowResolution, Network, pretrained

NAME = "Hugging Face dense"
TYPES: tuple[str, ...] = (
    "beit",
    "data2vec-vision",
    "dpt",
    "mobilenet_v2",
    "mobilevit",
    "mobilevitv2",
    "sapiens2",
    "upernet",
)


def matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in TYPES


def load(source: FolderSource) -> Network:
    """Ends at the low-resolution logits where the model's last step is a bilinear resize to the window."""
    module = LowResolution(_Logits(pretrained(source, "AutoModelForSemanticSegmentation")))
    return Network(module, source.model_type)


class _Logits(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(pixel_values=x).logits
        return logits
