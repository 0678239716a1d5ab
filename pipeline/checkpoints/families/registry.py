"""Which family a folder belongs to, and its network as the rest of the build takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.errors import DeployError
from engines.images.palettes import default_classes, palette_for
from engines.spec import ModelSpec
from pipeline.checkpoints.common import LoadedModel
from pipeline.checkpoints.families import dense, eomt, masks, oneformer, smp
from pipeline.checkpoints.families.common import Family, FolderSource
from pipeline.checkpoints.files import files_sha256
from pipeline.checkpoints.folder import weights_files
from pipeline.checkpoints.huggingface_config import NAMING, label_fields
from pipeline.checkpoints.probe import measure, probe
from pipeline.checkpoints.processor import PROCESSOR, processor_fields

FAMILIES: tuple[Family, ...] = (dense, masks, eomt, oneformer, smp)


def load_family(source: FolderSource, named: bool) -> LoadedModel:
    """The network in a folder and its contract.  named: the user names the classes.  Raises DeployError."""
    family = _family_of(source)
    network = family.load(source)
    who = f"{source.folder} ({network.architecture})"
    channels, stride = measure(probe(network.module, source.window, who, network.channels), source.window, who)
    labels, remarks = label_fields({**source.config, **(dict.fromkeys(NAMING) if named else {})}, channels)
    names = labels.get("classes") or default_classes(channels)
    processor = processor_fields(source.folder) if network.fields is None else network.fields
    fields: dict[str, Any] = {"palette": palette_for(names)} | labels | dict(processor)
    if network.fields is None and not (source.folder / PROCESSOR).is_file():
        remarks += (f"the folder has no {PROCESSOR}; assumed: mean and std of ImageNet, RGB",)
    spec = ModelSpec(
        architecture=network.architecture,
        variant=_variant(source),
        logits_stride=stride,
        source=family.NAME,
        source_sha256=files_sha256(weights_files(source.folder)),
        **(fields | {"classes": names}),
    )
    return LoadedModel(network.module, spec, remarks=(*network.remarks, *remarks))


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
    """The backbone, where the config names it; else what the folder is called."""
    backbone = source.config.get("backbone_config")
    inner = backbone.get("model_type") if isinstance(backbone, dict) else source.config.get("encoder_name")
    path = Path(str(source.config.get("_name_or_path") or source.folder.resolve()))
    return str(inner or path.name)
