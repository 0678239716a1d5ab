"""Weights on disk -> tensors.  Nothing that a file says is ever executed.

Pickles go through PyTorch's restricted unpickler (``weights_only=True``), which builds tensors and plain containers
and refuses everything else, but for the few names that `inert` stands in for; safetensors hold nothing but tensors.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from engines.errors import DeployError
from engines.files import file_sha256, refuse_pointer
from pipeline.checkpoints.common import State, check_finite
from pipeline.checkpoints.inert import STAND_INS
from pipeline.checkpoints.unwrap import Weights, unwrap

# What torch.load raises on damaged files, found by truncating and flipping bytes of both of its formats.
_DAMAGED = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError, struct.error)
_WRAPPER = "module."  # prefix left by DataParallel


def read_weights(path: Path) -> Weights:
    """The state dict in a .safetensors or torch.save file, taken out of what the training saved around it.

    Removes the prefix ``module.`` if every key has it; `Weights.within` finds others.
    Raises DeployError if the file is missing, damaged, holds code, or is not a state dict.
    """
    if not path.is_file():
        raise DeployError(f"{path}: got {_kind(path)}, expected a file of weights; check the path")
    if path.stat().st_size == 0:
        raise DeployError(f"{path}: got an empty file, expected weights; download it again")
    try:
        refuse_pointer(path, "weights")
    except OSError as error:
        raise DeployError(f"{path}: got {_line(error)}, expected a readable file; check its permissions") from error
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    content, meta, remarks = unwrap(content)
    return Weights(_state(path, content), dict(meta), remarks)


def read_shards(index: Path) -> tuple[State, list[Path]]:
    """The tensors of a Hugging Face ``*.index.json``, and the files they came from.  Raises DeployError."""
    state: State = {}
    files, names = shards(index)
    for path in files:
        shard = read_weights(path).state
        listed = {key for key, file in names.items() if file == path.name}
        if shard.keys() != listed:
            key = min(shard.keys() ^ listed)
            raise DeployError(f"{path}: got tensors other than {index.name} lists ({key}); download it again")
        state.update(shard)
    return state, files


def shards(index: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that a ``*.index.json`` lists, and the file's name by tensor.  Raises DeployError."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise DeployError(f"{index}: got no weight_map, expected one from tensor to file; download the folder again")
    for name in names.values():
        # An index must not be able to name files outside its folder.
        if Path(name).name != name:
            raise DeployError(f"{index}: got the shard {name!r}, expected a file name without folders")
    return [index.parent / name for name in sorted(set(names.values()))], names


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.  Raises DeployError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeployError(f"{path}: got {_line(error)}, expected readable JSON; download it again") from error
    if not isinstance(data, dict):
        raise DeployError(f"{path}: got a JSON {type(data).__name__}, expected an object; download it again")
    return data


def fill(module: nn.Module, state: State, path: Path) -> None:
    """Load `state`, strictly, into a module that another library or the user made.  Raises DeployError."""
    expected = module.state_dict()
    for kind, keys in (("no tensor for", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys())):
        if keys:
            raise DeployError(
                f"{path}: got {kind} {', '.join(sorted(keys)[:3])} ({len(keys)} in all), "
                "expected the keys of the module"
            )
    for key, tensor in state.items():
        shape = expected[key].shape
        if tensor.shape != shape:
            raise DeployError(f"{path}: {key}: got shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if tensor.is_floating_point():
            check_finite(tensor, key)
    module.load_state_dict(state, strict=True)


def files_sha256(files: Sequence[Path]) -> str:
    """The SHA-256 of one file, or of the lines ``digest  name`` of several, as `sha256sum` prints them."""
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DeployError(
            f"{path}: got a damaged file ({_line(error)}), expected safetensors; download it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
            # It warns of pickle protocols and archives that it may not manage, and then raises if it does not.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except OSError as error:
        raise DeployError(f"{path}: got {_line(error)}, expected a readable file; check its permissions") from error
    except _DAMAGED as error:
        if "TorchScript" in str(error):
            raise DeployError(
                f"{path}: got a TorchScript archive, expected a state dict; save torch.save(model.state_dict(), ...)"
            ) from error
        raise DeployError(
            f"{path}: got a damaged file ({_line(error)}), expected a torch checkpoint; download it again"
        ) from error


def _refused(path: Path, reason: str) -> DeployError:
    """What the restricted unpickler's message means to the user."""
    names = ", ".join(sorted(set(re.findall(r"GLOBAL ([\w.]+)", reason))))
    if names:
        return DeployError(
            f"{path}: got a pickle that would run {names}, expected tensors and plain containers only; if you trust "
            "it, load it where it came from and save torch.save(model.state_dict(), ...), or of a dictionary "
            'torch.save({k: ckpt[k] for k in ("state_dict", "meta")}, ...)'
        )
    if "Unsupported operand" in reason and zipfile.is_zipfile(path):
        return DeployError(f"{path}: got a newer pickle protocol, expected torch.save's own; leave out pickle_protocol")
    return DeployError(
        f"{path}: got a file that is not a torch checkpoint, expected one from torch.save, or safetensors; "
        "check the download"
    )


def _state(path: Path, content: Any) -> State:
    if not isinstance(content, Mapping) or not content:
        kind = "an empty one" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise DeployError(f"{path}: got {kind}, expected a state dict; save torch.save(model.state_dict(), ...)")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise DeployError(
                f"{path}: got {type(value).__name__} at {key!r}, expected tensors by name; "
                "save torch.save(model.state_dict(), ...)"
            )
    wrapped = all(key.startswith(_WRAPPER) for key in content)
    return {key.removeprefix(_WRAPPER) if wrapped else key: value for key, value in content.items()}


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "no such file"


def _line(error: BaseException) -> str:
    """The first line of a message, short enough to stand in one of ours."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
