"""Checkpoints -> a network and its contract.  One module per layout; the published ones are listed in `registry`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.spec import ModelSpec
from pipeline.checkpoints import huggingface
from pipeline.checkpoints.common import LoadedModel, Parsed
from pipeline.checkpoints.files import files_sha256, read_state
from pipeline.checkpoints.registry import layout_of, meta_fields
from pipeline.checkpoints.user import load_factory

__all__ = ["LoadedModel", "load_model"]

DEMO = Path(__file__).parents[1] / "demo" / "model"  # the model that ships
ADE20K_CLASSES = 150
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load_model(source: str, *, weights: Path | None = None, window: tuple[int, int] = (1024, 1024)) -> LoadedModel:
    """Load a trained network from `source`; no code in it is run, except for a factory.

    source: a Hugging Face folder; a .pth, .pt, .bin or .safetensors with a state dict of a layout in `registry`; a
    Python factory ``package.module:function``; or ``demo``.
    weights: a state dict for the factory's module; allowed with a factory only.
    window: (H, W) in pixels that the network will be run at; SETR's position embedding is made for it.

    Raises DeployError, in one line: what was got, what was expected, what to do.
    """
    path = Path(source)
    factory = source != "demo" and not path.exists() and _FACTORY.fullmatch(source) is not None
    if factory:
        return load_factory(source, weights, window)
    if weights is not None:
        raise DeployError(f"--weights {weights}: got it with {source}, expected a Python factory; leave the option out")
    if source == "demo":
        return _load_folder(DEMO)
    if path.is_dir():
        return _load_folder(path)
    if not path.exists():
        raise DeployError(
            f"{source}: got no such file, expected a Hugging Face folder, a checkpoint file, "
            "a factory package.module:function, or demo; check the path"
        )
    return _load_file(path, window)


def _load_folder(folder: Path) -> LoadedModel:
    parsed, fields, files = huggingface.load_folder(folder)
    return _loaded(parsed, fields, huggingface.NAME, files)


def _load_file(path: Path, window: tuple[int, int]) -> LoadedModel:
    state, meta = read_state(path)
    layout = layout_of(frozenset(state), path)
    parsed = layout.load(state, window)
    return _loaded(parsed, meta_fields(meta, parsed.classes, path, layout.NAME), layout.NAME, [path])


def _loaded(parsed: Parsed, fields: Mapping[str, Any], source: str, files: list[Path]) -> LoadedModel:
    # Imported here: this table of data sets is no part of reading weights.
    from engines.images.palettes import default_classes, palette_for

    names = fields.get("classes") or default_classes(parsed.classes)
    # ADE20K's labels count from 1; a .pth of 0.x does not say so, and every published one was trained on them.
    ade20k = parsed.classes == ADE20K_CLASSES and tuple(names) == tuple(default_classes(ADE20K_CLASSES))
    known: dict[str, Any] = {
        "mean": parsed.mean,
        "std": parsed.std,
        "palette": palette_for(names),
        "reduce_zero_label": ade20k,
    }
    spec = ModelSpec(
        architecture=parsed.architecture,
        variant=parsed.variant,
        channel_order=parsed.channel_order,
        logits_stride=parsed.logits_stride,
        source=source,
        source_sha256=files_sha256(files),
        **(known | dict(fields) | {"classes": names}),
    )
    return LoadedModel(parsed.module, spec)
