"""`deploy.py export-triton`: a bundle -> a model of a Triton repository, with all that it needs but packages.

REPOSITORY/NAME/config.pbtxt             inputs, outputs, batching, instances, class names; the user's to edit
REPOSITORY/NAME/1/model.py               what Triton starts
REPOSITORY/NAME/1/bundle/                the bundle
REPOSITORY/NAME/1/engines/               this package: gather and stitch beside the engine
REPOSITORY/NAME/1/requirements.txt       what the server's Python needs
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.backends import get_backend
from engines.bundle import MANIFEST, Bundle, Manifest, open_bundle, writing
from engines.errors import DeployError
from engines.serving.triton import BUNDLE, CONFIDENCE, IMAGE, LABELS, PIXELS
from engines.spec import IGNORE_LABEL
from engines.tiling.core import library

CONFIG, MODEL, REQUIREMENTS = "config.pbtxt", "model.py", "requirements.txt"
BATCH = 8  # images that one call takes at most: beyond it only those wait longer that came first
_ENGINES = Path(__file__).parents[1]
_MODEL = f'''\
"""A bundle of edgeseg in Triton's Python backend; {REQUIREMENTS} says what its Python needs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engines.serving.triton import TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True)
class Exported:
    """A version of a model in a repository.  path: its folder.  requirements: packages that the server's Python needs.

    kept: whether config.pbtxt was there and was left as it is.
    """

    model: str
    version: int
    path: str
    requirements: tuple[str, ...]
    kept: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        kept = f"; {CONFIG} is the one that was there" if self.kept else ""
        return (
            f"{self.path}: version {self.version} of the model {self.model}{kept}; Triton's Python needs: "
            f"pip install -r {self.path}/{REQUIREMENTS}"
        )


def export_triton(folder: Path, repository: Path, name: str | None) -> Exported:
    """Write the bundle at `folder` as the model `name` of `repository`; None calls it as its folder is called.

    A model that is there gets a version more, and keeps its config.pbtxt.  What is half-written is never seen under a
    name that a server takes.  Raises DeployError.
    """
    bundle = open_bundle(folder)
    name = _checked_name(name or folder.resolve().name)
    model = repository / name
    needs = requirements(bundle.manifest)
    versions = _versions(model)
    if versions:
        _require_same_contract(model, versions[-1], bundle.manifest)
    number = versions[-1] + 1 if versions else 1
    with writing(model / str(number) if versions else model, _refuse_existing) as temporary:
        version = temporary if versions else temporary / str(number)
        version.mkdir(exist_ok=True)
        _write_version(bundle, version, needs)
        if not versions:
            (temporary / CONFIG).write_text(config(name, bundle.manifest))
    return Exported(name, number, path=str(model / str(number)), requirements=needs, kept=bool(versions))


def requirements(manifest: Manifest) -> tuple[str, ...]:
    """For pip: the SDK in the release that the engine was compiled by.

    NumPy 1: with NumPy 2 the Python backend that was tried took bytes wrongly apart and ended.
    """
    gpu = ("pycuda",) if get_backend(manifest.backend).on_gpu else ()
    return ("numpy<2", "pillow", "tqdm", manifest.sdk.replace(" ", "=="), *gpu)


def config(name: str, manifest: Manifest) -> str:
    """The text of config.pbtxt."""
    spec, channels = manifest.spec, len(manifest.spec.mean)
    where = "KIND_GPU gpus: [ 0 ]" if get_backend(manifest.backend).on_gpu else "KIND_CPU"
    facts = {
        "classes": json.dumps(spec.classes), "palette": json.dumps(spec.palette), "ignore_label": str(IGNORE_LABEL),
        "precision": manifest.precision, "backend": manifest.sdk, "source_sha256": spec.source_sha256,
    }  # fmt: skip
    parameters = "\n".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in facts.items()
    )
    return f"""\
# Written by `deploy.py export-triton`, and yours to edit: another export adds a version and leaves this file alone.
name: "{name}"
backend: "python"
max_batch_size: {BATCH}
# Requests that wait while the device works go to it together, whatever the sizes of their images.
dynamic_batching {{ }}
# One of the two: image files of any format that `run` reads, or (H, W, {channels}) pixels.
input [
  {{ name: "{IMAGE}" data_type: TYPE_STRING dims: [ 1 ] optional: true allow_ragged_batch: true }},
  {{ name: "{PIXELS}" data_type: TYPE_UINT8 dims: [ -1, -1, {channels} ] optional: true allow_ragged_batch: true }}
]
# Confidence is computed for requests that name it among their outputs, or name none.
output [
  {{ name: "{LABELS}" data_type: TYPE_UINT8 dims: [ -1, -1 ] }},
  {{ name: "{CONFIDENCE}" data_type: TYPE_FP32 dims: [ -1, -1 ] }}
]
# Each instance is a process with an engine of its own.
instance_group [ {{ count: 1 kind: {where} }} ]
{parameters}
"""


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise DeployError(f"model name: got {name!r}, expected letters, digits, '_', '-' and '.'; give one with --name")
    return name


def _versions(model: Path) -> list[int]:
    """Those that are there, the newest last.  Raises DeployError where something else is."""
    if not model.exists() or (model.is_dir() and not any(model.iterdir())):
        return []
    found = [int(each.name) for each in model.iterdir() if each.name.isdecimal()] if model.is_dir() else []
    if not found or not (model / CONFIG).is_file():
        raise DeployError(f"output {model}: exists and is no model of Triton, and is left alone; give another --name")
    return sorted(found)


def _require_same_contract(model: Path, newest: int, manifest: Manifest) -> None:
    """A client goes by config.pbtxt, which all versions share."""
    there = model / str(newest) / BUNDLE
    before = open_bundle(there).manifest if (there / MANIFEST).is_file() else None
    if before is None or _contract(before) != _contract(manifest):
        raise DeployError(
            f"output {model}: version {newest} has other classes, colours or channels, or runs on other hardware, than "
            "this bundle, and all versions share one config.pbtxt; give another --name"
        )


def _contract(manifest: Manifest) -> tuple[Any, ...]:
    spec = manifest.spec
    return spec.classes, spec.palette, len(spec.mean), get_backend(manifest.backend).on_gpu


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise DeployError(f"output {folder}: was written meanwhile; run this again")


def _write_version(bundle: Bundle, version: Path, needs: tuple[str, ...]) -> None:
    (version / MODEL).write_text(_MODEL)
    (version / REQUIREMENTS).write_text("\n".join(needs) + "\n")
    (version / BUNDLE).mkdir()
    for name in bundle.manifest.files:
        bundle.copy(name, version / BUNDLE)
    shutil.copyfile(bundle.folder / MANIFEST, version / BUNDLE / MANIFEST)
    for source in sorted(_ENGINES.rglob("*")):  # one by one: of a full disk copytree makes an error of its own
        if source.is_file() and source.suffix not in (".pyc", ".so"):
            target = version / "engines" / source.relative_to(_ENGINES)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    # A plain library, not tied to a Python: under this name whatever Python the server has finds it.
    shutil.copyfile(library()._name, version / "engines" / "tiling" / "_tile.so")
