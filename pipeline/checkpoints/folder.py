"""The weights in a folder with a config.json: whole or in shards, as they are or as one variant such as fp16."""

from __future__ import annotations

import re
from pathlib import Path

from engines.errors import DeployError
from pipeline.checkpoints.common import State
from pipeline.checkpoints.files import read_shards, read_weights, shards
from pipeline.checkpoints.unwrap import Fits

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_VARIANTS = ("model.*.safetensors", "model.safetensors.index.*.json", "pytorch_model.*.bin")
_SHARD = re.compile(r"-\d+-of-\d+\.")


def read_folder(folder: Path, fits: Fits = lambda _: True) -> tuple[State, list[Path]]:
    """The tensors, below the prefix without which `fits` knows them, and the files that they lie in.

    Raises DeployError.
    """
    path = weights_file(folder)
    return read_shards(path) if path.suffix == ".json" else (read_weights(path).within(fits).state, [path])


def weights_file(folder: Path) -> Path:
    """The file that holds the weights, or lists their shards.  Raises DeployError unless there is one."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = {path for pattern in _VARIANTS for path in folder.glob(pattern) if not _SHARD.search(path.name)}
    if len(found) == 1:  # such as model.fp16.safetensors
        return found.pop()
    if found:
        names = ", ".join(sorted(path.name for path in found))
        raise DeployError(f"{folder}: got {names}, expected one variant; rename it to {_WEIGHTS[0]}")
    others = [path for path in folder.iterdir() if path.suffix in (".pth", ".pt", ".ckpt")]
    if len(others) == 1:
        return others[0]
    raise DeployError(f"{folder}: got a config.json without weights, expected {', '.join(_WEIGHTS[:3])}")


def weights_files(folder: Path) -> list[Path]:
    """The files that hold the tensors, for their digest.  Raises DeployError."""
    path = weights_file(folder)
    return shards(path)[0] if path.suffix == ".json" else [path]


def existing(folder: Path, name: str) -> Path:
    """The file of that name.  Raises DeployError."""
    if not (folder / name).is_file():
        raise DeployError(f"{folder}: got a folder without {name}, expected a Hugging Face model or a weights file")
    return folder / name
