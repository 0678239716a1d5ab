"""Which layout a state dict has, and what the metadata beside it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.spec import THRESHOLD
from pipeline.checkpoints import huggingface_alone, mmseg_segformer, nvlabs, setr_fudan, setr_mmseg
from pipeline.checkpoints.common import Layout, some
from pipeline.checkpoints.huggingface import is_huggingface
from pipeline.checkpoints.training_config import TrainingConfig

LAYOUTS: tuple[Layout, ...] = (nvlabs, mmseg_segformer, setr_fudan, setr_mmseg, huggingface_alone)
_THRESHOLDS = {mmseg_segformer.NAME: 0.3, setr_mmseg.NAME: 0.3}  # mmsegmentation's own, where the config names none


def is_known(keys: frozenset[str]) -> bool:
    """Whether these are the names of some layout, with nothing in front of them."""
    return is_huggingface(keys) or any(layout.matches(keys) for layout in LAYOUTS)


def layout_of(keys: frozenset[str], path: Path) -> Layout:
    """The one layout that matches.  Raises DeployError if none does, or several."""
    if any(".lora_" in key for key in keys):
        raise DeployError(
            f"{path}: got adapters beside the weights ({some(sorted(key for key in keys if '.lora_' in key))}), "
            "expected them merged; save model.merge_and_unload().state_dict()"
        )
    found = [layout for layout in LAYOUTS if layout.matches(keys)]
    if is_huggingface(keys) and (path.parent / "config.json").is_file():
        raise DeployError(f"{path}: got Hugging Face weights with a config.json beside them; pass the folder")
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(layout.NAME for layout in found)
        raise DeployError(f"{path}: got tensors of {names}, expected one network; save them apart")
    known = ", ".join(layout.NAME for layout in LAYOUTS)
    if not any(key.startswith("decode_head.") for key in keys):
        raise DeployError(
            f"{path}: got {len(keys)} tensors without a decode_head ({some(sorted(keys))}), expected a whole "
            f"segmentation network ({known}); an encoder alone must be fine-tuned, others go through a Python factory"
        )
    raise DeployError(
        f"{path}: got an unknown layout, {_nearest(keys)}; expected {known}; others go through a Python factory"
    )


def _nearest(keys: frozenset[str]) -> str:
    """Which layout comes closest, what of it is missing, and what is left over."""

    def share(layout: Layout) -> tuple[int, int]:
        return sum(any(key.startswith(sign) for key in keys) for sign in layout.SIGNS), _covered(keys, layout.SIGNS)

    nearest = max(LAYOUTS, key=share)
    missing = [f"{sign}*" for sign in nearest.SIGNS if not any(key.startswith(sign) for key in keys)]
    parts = tuple(sign.rstrip(".").rstrip("0123456789").split(".0.")[0] for sign in nearest.SIGNS)
    left_over = sorted({".".join(key.split(".")[:2]) for key in keys if not key.startswith(parts)})
    said = f"nearest {nearest.NAME}, without {some(missing) or 'its decoder'}"
    return f"{said}; left over {some(left_over)}" if left_over else said


def _covered(keys: frozenset[str], signs: tuple[str, ...]) -> int:
    return sum(key.startswith(signs) for key in keys)


def meta_fields(
    meta: Mapping[str, Any], config: TrainingConfig, channels: int, path: Path, layout: str, named: bool = False
) -> dict[str, Any]:
    """Fields of a `ModelSpec`, as far as mmsegmentation's meta and its config have them.

    mmsegmentation 0.x writes CLASSES and PALETTE; 1.x writes dataset_meta with both, and with reduce_zero_label.
    layout: its name.  A decoder of one channel (out_channels=1) tells two classes apart, by its ``threshold``.
    named: whether the user names the classes, and what the file says of them does not matter.
    Raises DeployError.
    """
    inner = meta.get("dataset_meta")
    source = inner if isinstance(inner, Mapping) else meta
    fields: dict[str, Any] = {} if named else _class_fields(source, channels, path)
    if isinstance(source.get("reduce_zero_label"), bool):
        fields["reduce_zero_label"] = source["reduce_zero_label"]
    if channels == 1:
        fields["threshold"] = _threshold(config) or _THRESHOLDS.get(layout, THRESHOLD)
    return fields | config.normalisation()


def _class_fields(source: Mapping[str, Any], channels: int, path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    names = source.get("classes", source.get("CLASSES"))
    if names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise DeployError(f"{path}: meta: got {type(names).__name__} as classes, expected a list of names")
        if len(names) != channels and (len(names), channels) != (2, 1):
            raise DeployError(
                f"{path}: meta: got {len(names)} class names, expected {channels}, one for each output channel; "
                "the metadata belongs to another training, name them with --classes"
            )
        fields["classes"] = tuple(name.strip() for name in names)
    palette = source.get("palette", source.get("PALETTE"))
    if isinstance(palette, (list, tuple)):
        try:
            fields["palette"] = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        except (TypeError, ValueError) as error:
            raise DeployError(f"{path}: meta: got {error} in the palette, expected [red, green, blue]") from error
    return fields


def _threshold(config: TrainingConfig) -> float | None:
    """The decode head's, the last of several; None where it has none between 0 and 1."""
    heads = config.lookup("model.decode_head")
    heads = heads if isinstance(heads, list | tuple) else [heads]
    found = [head["threshold"] for head in heads if isinstance(head, Mapping) and "threshold" in head]
    value = found[-1] if found else None
    return value if isinstance(value, float) and 0 < value < 1 else None
