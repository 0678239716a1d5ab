"""What each of several models is called: as it was typed, shortened while that tells them apart."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

_ENDINGS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".onnx", ".tar")
_UNFIT = re.compile(r"[^\w.-]+")


def names(models: Sequence[str]) -> list[str]:
    """Of tables and folders: a checkpoint's stem, a factory's function; with the folders above it, or its module, where
    that is not enough, and numbered where nothing is.  None differs from another by case alone.
    """
    parts = [_parts(model) for model in models]
    taken = [1] * len(parts)
    while True:
        found = ["-".join(each[-count:]) for each, count in zip(parts, taken, strict=True)]
        counts = Counter(map(str.lower, found))
        more = [
            index for index, name in enumerate(found)
            if counts[name.lower()] > 1 and taken[index] < len(parts[index])
        ]  # fmt: skip
        if not more:
            return _numbered(found)
        for index in more:
            taken[index] += 1


def _parts(model: str) -> list[str]:
    module, colon, function = model.rpartition(":")
    if colon and "/" not in function:
        words = [*module.replace("/", ".").split("."), function]
    else:
        *folders, name = [word for word in os.path.abspath(model).split(os.sep) if word] or ["model"]
        while name.lower().endswith(_ENDINGS):
            name = name[: name.rindex(".")]
        words = [*folders, name]
    return [fit for word in words if (fit := _UNFIT.sub("-", word).strip("-."))] or ["model"]


def _numbered(found: list[str]) -> list[str]:
    """Those that are alike still, from the second on, by the first number that gives a name of its own."""
    used = {name.lower() for name in found}
    for index, name in enumerate(found):
        if name.lower() in map(str.lower, found[:index]):
            tried = (f"{name}-{number}" for number in range(2, 2 + len(found)))
            found[index] = next(each for each in tried if each.lower() not in used)
            used.add(found[index].lower())
    return found
