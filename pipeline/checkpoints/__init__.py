"""Checkpoints -> a network and its contract.  One module per layout; the published ones are listed in `registry`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.spec import ModelSpec
from pipeline.checkpoints import huggingface
from pipeline.checkpoints.common import LoadedModel, Parsed
from pipeline.checkpoints.families.common import FolderSource
from pipeline.checkpoints.families.registry import load_family
from pipeline.checkpoints.files import files_sha256, read_json, read_weights
from pipeline.checkpoints.folder import existing
from pipeline.checkpoints.registry import is_known, layout_of, meta_fields
from pipeline.checkpoints.training_config import read_config
from pipeline.checkpoints.user import load_factory

__all__ = ["LoadedModel", "load_model"]

_SHIPPED = Path(__file__).parents[1] / "demo"
DEMOS = {"demo": _SHIPPED / "model", "demo-setr": _SHIPPED / "setr" / "setr-pup.pth"}  # the models that ship
ADE20K_CLASSES = 150
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load_model(
    source: str, *, weights: Path | None = None, window: tuple[int, int] = (1024, 1024), named: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> LoadedModel:  # fmt: skip
    """Load a trained network from `source`; no code in it is run, except for a factory.

    source: a Hugging Face folder; a .pth, .pt, .bin or .safetensors with a state dict of a layout in `registry`; a
    Python factory ``package.module:function``; or one of `DEMOS`.
    weights: a state dict for the factory's module; allowed with a factory only.
    window: (H, W) in pixels that the network will be run at; SETR's position embedding is made for it.
    arguments: that a factory is called with, by name.
    named: the user names the classes: what the source says of them is not read.

    Raises DeployError, in one line: what was got, what was expected, what to do.
    """
    path = Path(source)
    factory = source not in DEMOS and not path.exists() and _FACTORY.fullmatch(source) is not None
    if factory:
        return load_factory(source, weights, window, arguments)
    if arguments:
        raise DeployError(f"--arg {next(iter(arguments))}: got it with {source}, expected a Python factory")
    if weights is not None:
        raise DeployError(f"--weights {weights}: got it with {source}, expected a Python factory; leave the option out")
    path = DEMOS.get(source, path)
    if path.is_dir():
        return _load_folder(path, window, named)
    if not path.exists():
        raise DeployError(
            f"{source}: got no such file, expected a Hugging Face folder, a checkpoint file, "
            "a factory package.module:function, demo or demo-setr; check the path"
        )
    return _load_file(path, window, named)


def _load_folder(folder: Path, window: tuple[int, int], named: bool) -> LoadedModel:
    config = read_json(existing(folder, "config.json"))
    if config.get("model_type") != "segformer":
        return load_family(FolderSource(folder, config, window), named)
    parsed, fields, files = huggingface.load_folder(folder, named)
    return _loaded(parsed, fields, huggingface.NAME, files)


def _load_file(path: Path, window: tuple[int, int], named: bool) -> LoadedModel:
    weights = read_weights(path).within(is_known)
    layout = layout_of(frozenset(weights.state), path)
    config = read_config(weights.meta)
    try:
        parsed = layout.load(dict(weights.state), window, config)
    except DeployError as error:
        raise DeployError(f"{path}, read as {layout.NAME}: {str(error).removeprefix('checkpoint: ')}") from error
    fields = meta_fields(weights.meta, config, parsed.classes, path, layout.NAME, named)
    remarks = (*weights.remarks, *parsed.remarks, *config.remarks())
    return _loaded(replace(parsed, remarks=remarks), fields, layout.NAME, [path])


def _loaded(parsed: Parsed, fields: Mapping[str, Any], source: str, files: list[Path]) -> LoadedModel:
    # Imported here: this table of data sets is no part of reading weights.
    from engines.images.palettes import default_classes, palette_for

    names = fields.get("classes") or default_classes(parsed.classes)
    # ADE20K's labels count from 1; a .pth of 0.x does not say so, and every published one was trained on them.
    ade20k = parsed.classes == ADE20K_CLASSES and tuple(names) == tuple(default_classes(ADE20K_CLASSES))
    known: dict[str, Any] = {
        "mean": parsed.mean,
        "std": parsed.std,
        "channel_order": parsed.channel_order,
        "palette": palette_for(names),
        "reduce_zero_label": ade20k,
    }
    spec = ModelSpec(
        architecture=parsed.architecture,
        variant=parsed.variant,
        logits_stride=parsed.logits_stride,
        source=source,
        source_sha256=files_sha256(files),
        **(known | dict(fields) | {"classes": names}),
    )
    return LoadedModel(parsed.module, spec, remarks=parsed.remarks)
