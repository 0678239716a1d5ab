"""Colour-coded label files: which colour stands for which class.

A palette is ``bundle`` (or ``model``: the model's own), a data set that the project knows (engines/images/palettes.py),
or a text file of lines in either form; empty lines and those that begin with # say nothing:

    traffic light 250 170 30          the name, then red, green and blue
    traffic light:250,170,30::        CVAT's labelmap.txt (name:color_rgb:parts:actions)

Names are matched with the classes that are scored, whatever their case.  The name ``ignore`` is 255, and so is black in
a palette that is not from a file, unless a class has it.  Several colours may have one name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calib.data.label_map import LabelMap
from engines.contract import UInt8
from engines.errors import DeployError
from engines.images.palettes import DATASETS
from engines.spec import IGNORE_LABEL, MAX_CLASSES, RGB, ModelSpec

IGNORE = "ignore"
OWN = ("bundle", "model")
_BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Colours:
    """entries: (name, colour) in the order of the palette.  source: where they are from, for people."""

    entries: tuple[tuple[str, RGB], ...]
    source: str
    from_file: bool = False

    def numbers(self, classes: Sequence[str], label_map: LabelMap | None) -> ColourTable:
        """Which number each colour is read as.

        By name where every name is one of `classes`; else, with a label map that has a "label", what that makes of the
        place of the name in the palette, from 0.  Raises DeployError on a name that is no class.
        """
        names = list(dict.fromkeys(name for name, _ in self.entries if _plain(name) != IGNORE))
        wanted = {_plain(name): index for index, name in enumerate(classes)}
        strange = [name for name in names if _plain(name) not in wanted]
        if strange and label_map is not None and label_map.label:
            targets = {**dict(label_map.label), **dict.fromkeys(label_map.ignore, IGNORE_LABEL)}
            wanted = {_plain(name): targets.get(index, index) for index, name in enumerate(names)}
            beyond = [name for name in names if len(classes) <= wanted[_plain(name)] < IGNORE_LABEL]
            if beyond:
                raise DeployError(
                    f"--label-colors {self.source}: got {beyond[0]!r}, for which the label map names none of the "
                    f'{len(classes)} classes; add {names.index(beyond[0])} to its "label"'
                )
        elif strange and not self.from_file and len(names) == len(classes):
            wanted = {_plain(name): index for index, name in enumerate(names)}  # one data set under two spellings
        elif strange:
            raise DeployError(
                f"--label-colors {self.source}: got the name {strange[0]!r}, which is none of the {len(classes)} "
                f"classes that are scored ({', '.join(classes[:12])}{', ...' if len(classes) > 12 else ''}); rename "
                f"it, call it {IGNORE!r}, or give a --label-map"
            )
        wanted[IGNORE] = IGNORE_LABEL
        shared = self.shared
        found = {colour: wanted[_plain(name)] for name, colour in self.entries if colour not in shared}
        if not self.from_file and _BLACK not in shared:
            found.setdefault(_BLACK, IGNORE_LABEL)
        return ColourTable(tuple(sorted(found.items())), self.source, shared)

    @property
    def shared(self) -> dict[RGB, str]:
        """Colours of two classes, as some published palettes have them, and whose they are."""
        owners: dict[RGB, dict[str, None]] = {}
        for name, colour in self.entries:
            owners.setdefault(colour, {})[_plain(name)] = None
        return {colour: " and ".join(names) for colour, names in owners.items() if len(names) > 1}


@dataclass(frozen=True)
class ColourTable:
    """pairs: (colour, number), by colour.  shared: colours that stand for no one class, and for which they do."""

    pairs: tuple[tuple[RGB, int], ...]
    source: str
    shared: Mapping[RGB, str]

    def read(self, image: UInt8, path: Path) -> UInt8:
        """(H, W, 3) uint8 colours -> (H, W) uint8 numbers.  Raises DeployError naming a colour that is not known."""
        wide = image.astype(np.uint32)
        codes = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        known = np.array([r << 16 | g << 8 | b for (r, g, b), _ in self.pairs], np.uint32)
        places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        strange = codes[known[places] != codes]
        if strange.size:
            values, counts = np.unique(strange, return_counts=True)
            most = int(values[counts.argmax()])
            colour = (most >> 16, most >> 8 & 255, most & 255)
            whose = f", which {self.shared[colour]} share there" if colour in self.shared else ""
            others = f" and {len(values) - 1} other unknown colour(s)" if len(values) > 1 else ""
            raise DeployError(
                f"labels {path}: got the colour {','.join(map(str, colour))} in {counts.max()} pixel(s){others}, "
                f"expected one of {len(self.pairs)} that stand for a class in --label-colors {self.source}{whose}; "
                f"give a file that names it, or calls it {IGNORE!r}"
            )
        return np.array([number for _, number in self.pairs], np.uint8)[places]


def read_colours(name: str, spec: ModelSpec) -> Colours:
    """The palette that `name` stands for.  Raises DeployError."""
    if name in OWN:
        return Colours(tuple(zip(spec.classes, spec.palette, strict=True)), name)
    if name in DATASETS and not Path(name).exists():
        known = DATASETS[name]
        return Colours(tuple(zip(known.names, known.palette, strict=True)), name)
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DeployError(
            f"--label-colors {name}: no such file, expected one, {OWN[0]!r} or one of: {', '.join(DATASETS)}"
        ) from error
    except OSError as error:
        raise DeployError(f"--label-colors {name}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DeployError(
            f"--label-colors {name}: not a text file; expected lines of a name, red, green, blue"
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    entries = tuple(_entry(line, f"{name}:{number}") for number, line in lines if line and not line.startswith("#"))
    if not entries:
        raise DeployError(f"--label-colors {name}: got no line, expected a name, red, green and blue in each")
    return _checked(Colours(entries, name, from_file=True))


def _entry(line: str, where: str) -> tuple[str, RGB]:
    cvat = line.split(":")  # what comes after the colour are its parts and actions
    parts = [cvat[0], *cvat[1].split(",")] if len(cvat) > 1 else line.replace(",", " ").rsplit(maxsplit=3)
    name, *numbers = parts or [""]  # of a line of commas nothing is left
    colour = [_byte(number.strip()) for number in numbers]
    if not name.strip() or len(colour) != 3 or None in colour:
        raise DeployError(
            f"--label-colors {where}: got {line[:60]!r}, expected a name and three numbers 0..255: 'road 128 64 128', "
            "or CVAT's 'road:128,64,128::'"
        )
    red, green, blue = (int(value) for value in colour if value is not None)
    return name.strip(), (red, green, blue)


def _byte(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 256
    return number if number <= 255 else None


def _checked(colours: Colours) -> Colours:
    for colour, names in colours.shared.items():
        raise DeployError(
            f"--label-colors {colours.source}: {names} have the same colour {','.join(map(str, colour))}, expected one "
            "class a colour"
        )
    if len(colours.entries) > MAX_CLASSES:
        raise DeployError(
            f"--label-colors {colours.source}: got {len(colours.entries)} lines, expected at most {MAX_CLASSES}"
        )
    return colours


def _plain(name: str) -> str:
    """Case, spaces, commas, dashes and underscores do not tell names apart."""
    return " ".join(re.split(r"[\s,_-]+", name.lower())).strip()
