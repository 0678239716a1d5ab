"""A calibration set: windows drawn from a folder of images, prepared exactly as the runtime prepares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calib.ranges.split import Photograph, photographs, set_sha256
from engines.contract import Float32, UInt8
from engines.errors import DeployError
from engines.images.read import MAX_PIXELS, read_image
from engines.images.resize import size_of, sized
from engines.spec import COLOUR, ModelSpec, Pixels
from engines.tiling.inputs import window_input
from engines.tiling.placement import Tiling


@dataclass(frozen=True)
class Place:
    """The window of `image` whose first row is `top` and first column `left`."""

    image: Path
    top: int
    left: int


@dataclass(frozen=True)
class CalibrationSet:
    """places: the drawn windows, those of an image together, in the order of `photographs`.  notes: what the user
    should hear about it.  wanted: what they were read as, and are again; None: as the model's spec says.
    """

    photographs: tuple[Photograph, ...]
    places: tuple[Place, ...]
    seed: int
    notes: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    wanted: Pixels | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(each.path for each in self.photographs)

    @property
    def sha256(self) -> str:
        """Of every image's name below the set's folder and its content."""
        return set_sha256(self.photographs)

    @property
    def seen(self) -> tuple[Photograph, ...]:
        """The images that at least one window was drawn from."""
        drawn = {place.image for place in self.places}
        return tuple(each for each in self.photographs if each.path in drawn)

    @property
    def images(self) -> int:
        """How many images at least one window was drawn from."""
        return len(self.seen)

    def inputs(self, spec: ModelSpec, tiling: Tiling, start: int = 0) -> Iterator[tuple[Place, Float32]]:
        """The network inputs (1, C, h, w) of the places from `start` on; an image is held while its windows come."""
        held: tuple[Path | None, UInt8 | None] = (None, None)
        for place in self.places[start:]:
            path, image = held
            if image is None or path != place.image:
                image = sized(read_image(place.image, self.max_pixels, self.wanted or spec.pixels), spec, tiling)
                held = (place.image, image)
            yield place, window_input(image, place.top, place.left, spec, tiling)[None]


def draw_windows(
    inputs: Sequence[str], tiling: Tiling, count: int = 64, seed: int = 0, max_pixels: int = MAX_PIXELS
) -> CalibrationSet:
    """As `draw_from`, from the images of `inputs` (folders, searched through, or files).

    Raises DeployError on an empty or unreadable folder, too.
    """
    every, notes = photographs(inputs)
    return draw_from(every, tiling, count=count, seed=seed, max_pixels=max_pixels, notes=notes)


def draw_from(
    images: Sequence[Photograph], tiling: Tiling, count: int = 64, seed: int = 0, max_pixels: int = MAX_PIXELS,
    notes: Sequence[str] = (), wanted: Pixels | None = None,
) -> CalibrationSet:  # fmt: skip
    """Draw at most `count` different windows from `images`, which are read as `wanted`; None: as colours here.

    The windows are those of the runtime's grid.  Images take turns in a random order, each giving one of its windows
    that was not drawn yet, until `count` are drawn or all windows of all images are.  Deterministic for a seed.
    Raises DeployError on a damaged image, and when every image is of one colour.
    """
    if count < 1:
        raise DeployError(f"--windows: got {count}, expected 1 or more")
    notes, paths = list(notes), [each.path for each in images]
    rng = np.random.default_rng([seed, 0xCA11B])
    turns = [paths[index] for index in rng.permutation(len(paths))]
    left: dict[Path, list[tuple[int, int]]] = {}
    flat: list[Path] = []
    drawn: list[Place] = []
    with tqdm(total=count, desc="windows", unit="window", disable=None, leave=False) as bar:
        while turns and len(drawn) < count:
            for path in turns[: count - len(drawn)]:
                if path not in left:
                    image = read_image(path, max_pixels, wanted or COLOUR)
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
        tuple(images), tuple(drawn), seed=seed, notes=tuple(notes), max_pixels=max_pixels, wanted=wanted
    )  # fmt: skip


def _grid(image: UInt8, tiling: Tiling, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The places of the runtime's windows on an image, shuffled."""
    tops, lefts = tiling.placements(*size_of(image, tiling))
    places = [(top, left) for top in tops for left in lefts]
    return [places[index] for index in rng.permutation(len(places))]
