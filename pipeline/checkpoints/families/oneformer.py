"""OneFormer with the task "semantic" baked in (Jain et al., CVPR 2023, arXiv 2211.06220)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engines.errors import DeployError
from pipeline.checkpoints.families.common import FolderSource, Network, pretrained, transformers
from pipeline.checkpoints.families.masks import ClassScores
from pipeline.checkpoints.folder import existing

NAME = "Hugging Face OneFormer"
TYPES: tuple[str, ...] = ("oneformer",)
TASK = "the task is semantic"


def matches(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in TYPES


def load(source: FolderSource) -> Network:
    """(N, 3, H, W) -> scores (N, K, h, w)."""
    module = pretrained(source, "AutoModelForUniversalSegmentation", _for_inference)
    task = _task(source, int(source.config.get("task_seq_len", 77)))
    return Network(ClassScores(module, task_inputs=task), source.model_type)


def _for_inference(config: Any) -> None:
    """Published configs say is_training, which keeps dropout on and asks for texts."""
    config.is_training = False


def _task(source: FolderSource, length: int) -> Tensor:
    """(1, length) int64: the task in tokens, zeros behind it, as the folder's tokenizer writes it."""
    try:
        existing(source.folder, "tokenizer.json" if (source.folder / "tokenizer.json").exists() else "vocab.json")
        tokenizer = transformers().AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except (DeployError, OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise DeployError(
            f"{source.folder}: got no tokenizer that can be read, expected vocab.json and merges.txt beside the "
            "weights: OneFormer is told its task in words"
        ) from error
    tokens = tokenizer([TASK], padding="max_length", max_length=length, truncation=True)
    return torch.tensor(tokens["input_ids"]) * torch.tensor(tokens["attention_mask"])
