"""A calibration set: windows drawn from a folder of images, prepared exactly as the runtime prepares them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engines.contract import Float32, UInt8
from engines.errors import DeployError
from engines.files import file_sha256
from engines.images.inputs import expand
from engines.images.read import MAX_PIXELS, read_image
from engines.spec import ModelSpec
from engines.tiling import core
from engines.tiling.placement import Tiling

# Folders that hold the photographs of a data set; what lies beside them are labels, which are images too.
IMAGE_FOLDERS = frozenset({"images", "leftimg8bit", "jpegimages", "img_dir"})


@dataclass(frozen=True)
class Place:
    """The window of `image` whose first row is `top` and first column `left`."""

    image: Path
    top: int
    left: int


@dataclass(frozen=True)
class CalibrationSet:
    """places: the drawn windows, those of an image together, in the order of `paths`.  sha256: of every image's name
    below the set's folder and its content.  notes: what the user should hear about it.
    """

    paths: tuple[Path, ...]
    places: tuple[Place, ...]
    sha256: str
    seed: int
    notes: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS

    @property
    def images(self) -> int:
        """How many images at least one window was drawn from."""
        return len({place.image for place in self.places})

    def inputs(self, spec: ModelSpec, tiling: Tiling, start: int = 0) -> Iterator[tuple[Place, Float32]]:
        """The network inputs (1, 3, h, w) of the places from `start` on; an image is held while its windows come."""
        size = (tiling.window_h, tiling.window_w)
        held: tuple[Path | None, UInt8 | None] = (None, None)
        for place in self.places[start:]:
            path, image = held
            if image is None or path != place.image:
                image = read_image(place.image, self.max_pixels)
                held = (place.image, image)
            window = core.gather(
                image, place.top, place.left, size, spec.mean, spec.std, order=spec.order, padding=tiling.padding
            )
            yield place, window[None]


def draw_windows(
    inputs: Sequence[str], tiling: Tiling, count: int = 64, seed: int = 0, max_pixels: int = MAX_PIXELS
) -> CalibrationSet:
    """Draw at most `count` different windows from the images of `inputs` (folders, searched through, or files).

    The windows are those of the runtime's grid.  Images take turns in a random order, each giving one of its windows
    that was not drawn yet, until `count` are drawn or all windows of all images are.  Deterministic for a seed.
    Raises DeployError on an empty or unreadable folder, on a damaged image, and when every image is of one colour.
    """
    if count < 1:
        raise DeployError(f"--windows: got {count}, expected 1 or more")
    names, notes = _images(inputs)
    paths = list(names)
    rng = np.random.default_rng([seed, 0xCA11B])
    turns = [paths[index] for index in rng.permutation(len(paths))]
    left: dict[Path, list[tuple[int, int]]] = {}
    flat: list[Path] = []
    drawn: list[Place] = []
    with tqdm(total=count, desc="windows", unit="window", disable=None, leave=False) as bar:
        while turns and len(drawn) < count:
            for path in turns[: count - len(drawn)]:
                if path not in left:
                    image = read_image(path, max_pixels)
                    left[path] = _grid(image, tiling, rng)
                    flat += [path] if (image == image[0, 0]).all() else []
                drawn.append(Place(path, *left[path].pop()))
                bar.update()
            turns = [path for path in turns if path not in left or left[path]]
    if flat:
        if len(flat) == len(left):
            raise DeployError(
                f"calibration: got {len(flat)} image(s) of one colour, such as {flat[0].name}, expected photographs of "
                "what the model will see; ranges of constant images would clip everything else"
            )
        notes.append(f"{len(flat)} image(s) of one colour, such as {flat[0].name}, say little about ranges")
    rank = {path: index for index, path in enumerate(paths)}
    drawn.sort(key=lambda place: (rank[place.image], place.top, place.left))
    if len(paths) == 1:
        notes.append(f"only one image, {paths[0].name}: ranges hold for photographs like it; better give 20 or more")
    elif len(drawn) < count:
        notes.append(f"{len(drawn)} window(s), all that {len(paths)} images have, not {count}")
    return CalibrationSet(
        tuple(paths), tuple(drawn), sha256=_digest(names), seed=seed, notes=tuple(notes), max_pixels=max_pixels
    )


def first_image(inputs: Sequence[str]) -> Path:
    """The first of the images that `draw_windows` would draw from.  Raises DeployError."""
    return next(iter(_images(inputs)[0]))


def _images(inputs: Sequence[str]) -> tuple[dict[Path, str], list[str]]:
    """Every image with its name within the set, and what to tell about them."""
    names: dict[Path, str] = {}
    for text in inputs:
        for found in expand([text], recursive=True):
            names.setdefault(found.path, (found.folder / found.path.name).as_posix())
    photographs = {
        path: name for path, name in names.items() if IMAGE_FOLDERS & {part.lower() for part in Path(name).parts[:-1]}
    }
    notes = []
    if photographs and len(photographs) < len(names):
        notes.append(f"{len(names) - len(photographs)} file(s) outside of the data set's image folders left out")
        names = photographs
    return names, notes


def _grid(image: UInt8, tiling: Tiling, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The places of the runtime's windows on an image, shuffled."""
    tops, lefts = tiling.placements(*image.shape[:2])
    places = [(top, left) for top in tops for left in lefts]
    return [places[index] for index in rng.permutation(len(places))]


def _digest(names: dict[Path, str]) -> str:
    """sha256 over names and contents, sorted, so that it does not depend on how files are listed."""
    total = hashlib.sha256()
    try:
        entries = sorted((name, file_sha256(path)) for path, name in names.items())
    except OSError as error:
        raise DeployError(f"image {error.filename}: cannot be read: {error.strerror}") from error
    for name, digest in entries:
        total.update(os.fsencode(name) + b"\0" + digest.encode())
    return total.hexdigest()
