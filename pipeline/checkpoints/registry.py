"""Which layout a state dict has, and what the metadata beside it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from pipeline.checkpoints import mmseg_segformer, nvlabs, setr_fudan, setr_mmseg
from pipeline.checkpoints.common import Layout
from pipeline.checkpoints.huggingface import is_huggingface

LAYOUTS: tuple[Layout, ...] = (nvlabs, mmseg_segformer, setr_fudan, setr_mmseg)
_SHOWN_KEYS = 3


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


def meta_fields(meta: Mapping[str, Any], classes: int, path: Path) -> dict[str, Any]:
    """``classes``, ``palette`` and ``reduce_zero_label`` of a `ModelSpec`, as far as mmsegmentation's meta has them.

    mmsegmentation 0.x writes CLASSES and PALETTE; 1.x writes dataset_meta with both, and with reduce_zero_label.
    Raises DeployError.
    """
    inner = meta.get("dataset_meta")
    source = inner if isinstance(inner, Mapping) else meta
    fields: dict[str, Any] = {}
    names = source.get("classes", source.get("CLASSES"))
    if names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise DeployError(f"{path}: meta: got {type(names).__name__} as classes, expected a list of names")
        if len(names) != classes:
            raise DeployError(
                f"{path}: meta: got {len(names)} class names, expected {classes}, one for each output channel; "
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
    return fields
