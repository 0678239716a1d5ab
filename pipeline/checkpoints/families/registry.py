"""Which family a folder belongs to, and its network as the rest of the build takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.images.palettes import default_classes, palette_for
from engines.spec import ModelSpec
from pipeline.checkpoints.common import LoadedModel
from pipeline.checkpoints.families import dense, eomt, masks, oneformer
from pipeline.checkpoints.families.common import Family, FolderSource
from pipeline.checkpoints.files import files_sha256
from pipeline.checkpoints.folder import weights_files
from pipeline.checkpoints.huggingface_config import NAMING, label_fields
from pipeline.checkpoints.probe import measure, probe
from pipeline.checkpoints.processor import PROCESSOR, processor_fields

FAMILIES: tuple[Family, ...] = (dense, masks, eomt, oneformer)


def load_family(source: FolderSource, named: bool) -> LoadedModel:
    """The network in a folder and its contract.  named: the user names the classes.  Raises DeployError."""
    family = _family_of(source)
    module = family.load(source)
    who = f"{source.folder} ({source.model_type})"
    channels, stride = measure(probe(module, source.window, who), source.window, who)
    labels, remarks = label_fields({**source.config, **(dict.fromkeys(NAMING) if named else {})}, channels)
    names = labels.get("classes") or default_classes(channels)
    fields: dict[str, Any] = {"palette": palette_for(names)} | labels | processor_fields(source.folder)
    if not (source.folder / PROCESSOR).is_file():
        remarks += (f"the folder has no {PROCESSOR}; assumed: mean and std of ImageNet, RGB",)
    spec = ModelSpec(
        architecture=source.model_type,
        variant=_variant(source),
        logits_stride=stride,
        source=family.NAME,
        source_sha256=files_sha256(weights_files(source.folder)),
        **(fields | {"classes": names}),
    )
    return LoadedModel(module, spec, remarks=remarks)


def _family_of(source: FolderSource) -> Family:
    found = [family for family in FAMILIES if family.matches(source.config)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(["segformer", *(name for family in FAMILIES for name in family.TYPES)])
    raise DeployError(
        f"{source.folder}: got model_type {source.config.get('model_type')!r}, expected one of {known}; "
        "load another architecture through a Python factory"
    )


def _variant(source: FolderSource) -> str:
    backbone = source.config.get("backbone_config")
    inner = backbone.get("model_type") if isinstance(backbone, dict) else None
    return str(inner or Path(str(source.config.get("_name_or_path") or source.folder.name)).name or "custom")
