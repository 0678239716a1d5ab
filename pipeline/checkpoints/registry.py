"""Which layout a state dict has, and what the metadata beside it says."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.spec import THRESHOLD
from pipeline.checkpoints import mmseg_segformer, nvlabs, setr_fudan, setr_mmseg
from pipeline.checkpoints.common import Layout
from pipeline.checkpoints.huggingface import is_huggingface

LAYOUTS: tuple[Layout, ...] = (nvlabs, mmseg_segformer, setr_fudan, setr_mmseg)
_SHOWN_KEYS = 3
_THRESHOLDS = {mmseg_segformer.NAME: 0.3, setr_mmseg.NAME: 0.3}  # mmsegmentation's own, where the config names none


def layout_of(keys: frozenset[str], path: Path) -> Layout:
    """The one layout that matches.  Raises DeployError if none does, or several."""
    found = [layout for layout in LAYOUTS if layout.matches(keys)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(layout.NAME for layout in found)
        raise DeployError(f"{path}: got tensors of {names}, expected one network; save them apart")
    if is_huggingface(keys):
        raise DeployError(
            f"{path}: got Hugging Face weights alone, expected the folder with their config.json; pass it"
        )
    known = ", ".join(layout.NAME for layout in LAYOUTS)
    first = ", ".join(sorted(keys)[:_SHOWN_KEYS])
    if not any(key.startswith("decode_head.") for key in keys):
        raise DeployError(
            f"{path}: got {len(keys)} tensors without a decode_head ({first}, ...), expected a whole segmentation "
            f"network ({known}); an encoder alone must be fine-tuned first, other networks go through a Python factory"
        )
    raise DeployError(
        f"{path}: got an unknown layout ({first}, ...), expected {known}; load other networks through a Python factory"
    )


def meta_fields(meta: Mapping[str, Any], channels: int, path: Path, layout: str) -> dict[str, Any]:
    """``classes``, ``palette``, ``reduce_zero_label`` of a `ModelSpec`, as far as mmsegmentation's meta has them.

    mmsegmentation 0.x writes CLASSES and PALETTE; 1.x writes dataset_meta with both, and with reduce_zero_label.
    layout: its name.  A decoder of one channel (out_channels=1) tells two classes apart, by its ``threshold``.
    Raises DeployError.
    """
    inner = meta.get("dataset_meta")
    source = inner if isinstance(inner, Mapping) else meta
    fields: dict[str, Any] = {}
    names = source.get("classes", source.get("CLASSES"))
    if names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise DeployError(f"{path}: meta: got {type(names).__name__} as classes, expected a list of names")
        if len(names) != channels and (len(names), channels) != (2, 1):
            raise DeployError(
                f"{path}: meta: got {len(names)} class names, expected {channels}, one for each output channel; "
                "the metadata belongs to another training"
            )
        fields["classes"] = tuple(name.strip() for name in names)
    palette = source.get("palette", source.get("PALETTE"))
    if isinstance(palette, (list, tuple)):
        try:
            fields["palette"] = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        except (TypeError, ValueError) as error:
            raise DeployError(f"{path}: meta: got {error} in the palette, expected [red, green, blue]") from error
    if isinstance(source.get("reduce_zero_label"), bool):
        fields["reduce_zero_label"] = source["reduce_zero_label"]
    if channels == 1:
        written = [_threshold(meta[key]) for key in ("cfg", "config") if isinstance(meta.get(key), str)]
        fields["threshold"] = next((value for value in written if value), _THRESHOLDS.get(layout, THRESHOLD))
    return fields


def _threshold(config: str) -> float | None:
    """The decode head's, in the Python text of a config, which is read but not run; None where it has none."""
    try:
        tree = ast.parse(config)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    heads = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "decode_head"]
    found = [node.value for head in heads for node in ast.walk(head)
             if isinstance(node, ast.keyword) and node.arg == "threshold"]  # fmt: skip
    values = [node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, float)]
    return values[-1] if values and 0 < values[-1] < 1 else None
