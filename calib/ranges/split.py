"""Which photographs of a set are calibrated on and which are held out: no image is ever on both sides."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256 as digest_of
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import DeployError
from engines.files import file_sha256
from engines.images.inputs import expand
from engines.images.read import is_label_map

# Folders that hold the photographs of a data set; what lies beside them are labels, which are images too.
IMAGE_FOLDERS = frozenset({"images", "leftimg8bit", "jpegimages", "img_dir"})
# What follows a photograph's name in that of its mask: data sets' habits, and this project's own.
_OF_A_MASK = re.compile(
    r"([._-](mask|masks|label|labels|labelids|labeltrainids|gt|seg|segmentation|annotation|color|overlay|confidence))+$",
    re.IGNORECASE,
)
FEWEST = 4  # different images: of fewer, none can be spared
MOST_HELD_OUT = 16
_SALT = 0x5B117


@dataclass(frozen=True)
class Photograph:
    """An image file.  name: below the set's folder, parts joined by ``/``.  sha256: of its bytes.

    path: where it lies now; it is not what tells two photographs apart, and not written down.
    """

    name: str
    sha256: str
    path: Path = field(default=Path(), compare=False)

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True)
class Split:
    """calibration: what may be calibrated on.  held_out: what may not, in random order; () where the set is too small.

    notes: what the user should hear about it.
    """

    calibration: tuple[Photograph, ...]
    held_out: tuple[Photograph, ...] = ()
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def golden(self) -> Photograph:
        """What a build is verified on: held out, where any is."""
        return (*self.held_out, *self.calibration)[0]

    @property
    def selection(self) -> tuple[Photograph, ...]:
        """The half of what is held out that decisions are made on."""
        return self.held_out[: (len(self.held_out) + 1) // 2]

    @property
    def report(self) -> tuple[Photograph, ...]:
        """The other half, on which no decision was made; () of a single image."""
        return self.held_out[len(self.selection) :]

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "calibration": {"images": len(self.calibration), "sha256": set_sha256(self.calibration)},
            "held_out": [each.to_json() for each in self.held_out],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return f"{len(self.calibration)} image(s) to calibrate on, {len(self.held_out)} held out, seed {self.seed}"


def split(inputs: Sequence[str], seed: int = 0, reserved: Collection[str] = ()) -> Split:
    """Hold out a quarter of the images of `inputs` (folders, searched through, or files), at most MOST_HELD_OUT.

    Files of the same bytes are one image and lie on one side.  reserved: digests of images that must not be calibrated
    on, which are held out first.  Deterministic for a seed.  Raises DeployError as `photographs` does.
    """
    every, notes = photographs(inputs)
    digests = list(dict.fromkeys(each.sha256 for each in every))
    kept = [digest for digest in digests if digest in reserved]
    drawn = [digests[i] for i in np.random.default_rng([seed, _SALT]).permutation(len(digests))]
    free = [digest for digest in drawn if digest not in reserved]
    quarter = min(MOST_HELD_OUT, len(digests) // 4 if len(digests) >= FEWEST else 0)
    held = [*kept, *free[: max(0, quarter - len(kept))]] if free else []
    if not held:
        few = f"{len(digests)} different image(s) are too few to hold any out ({FEWEST} are needed)"
        notes.append(f"{few}: what is verified and judged on them was calibrated on")
    by_digest: dict[str, Photograph] = {}
    for each in every:
        by_digest.setdefault(each.sha256, each)
    return Split(
        tuple(each for each in every if each.sha256 not in held), tuple(by_digest[digest] for digest in held), seed,
        tuple(notes),
    )  # fmt: skip


def photographs(inputs: Sequence[str]) -> tuple[tuple[Photograph, ...], list[str]]:
    """Every image of `inputs` with its name within the set, and what to tell about them.

    Raises DeployError on an empty or unreadable folder.
    """
    names: dict[Path, str] = {}
    for text in inputs:
        for found in expand([text], recursive=True):
            names.setdefault(found.path, (found.folder / found.path.name).as_posix())
    inside = {
        path: name for path, name in names.items() if IMAGE_FOLDERS & {part.lower() for part in Path(name).parts[:-1]}
    }
    notes = []
    if inside and len(inside) < len(names):
        notes.append(f"{len(names) - len(inside)} file(s) outside of the data set's image folders left out")
        names = inside
    masks = masks_beside(list(names))
    if masks:
        notes.append(f"{len(masks)} file(s) left out that lie beside photographs as masks, such as {masks[0].name}")
        names = {path: name for path, name in names.items() if path not in masks}
    return tuple(photograph(path, name) for path, name in names.items()), notes


def masks_beside(paths: Sequence[Path]) -> list[Path]:
    """Those that are a label map, overlay or confidence of another one in the same folder.

    ``a_mask.png`` beside ``a.jpg``, whatever it holds; ``a.png`` beside ``a.jpg`` where it has one channel.
    """
    endings: dict[tuple[Path, str], set[str]] = {}
    for path in paths:
        endings.setdefault((path.parent, path.stem), set()).add(path.suffix.lower())
    found = []
    for path in paths:
        bare = _OF_A_MASK.sub("", path.stem)
        named = bare != path.stem and (path.parent, bare) in endings
        twin = len(endings[path.parent, path.stem]) > 1 and is_label_map(path)
        found += [path] if named or twin else []
    return found


def photograph(path: Path, name: str = "") -> Photograph:
    """Raises DeployError when it cannot be read."""
    try:
        return Photograph(name or path.name, file_sha256(path), path)
    except OSError as error:
        raise DeployError(f"image {path}: cannot be read: {error.strerror}") from error


def set_sha256(images: Iterable[Photograph]) -> str:
    """Over names and contents, sorted, so that it does not depend on how files are listed."""
    total = digest_of()
    for name, digest in sorted((each.name, each.sha256) for each in images):
        total.update(os.fsencode(name) + b"\0" + digest.encode())
    return total.hexdigest()
