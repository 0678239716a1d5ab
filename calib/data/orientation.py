"""Labels of photographs that their EXIF orientation turns: drawn on the turned picture, or on the stored pixels?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.images.read import orientation

_SAID = {
    2: "mirrored", 3: "by 180 degrees", 4: "upside down, mirrored", 5: "along its diagonal", 6: "by 90 degrees",
    7: "along its other diagonal", 8: "by 270 degrees",
}  # fmt: skip
_OPTION = "--as-stored reads photographs as they are stored"


def turned_or_resized(image: Path, got: Sequence[int], size: tuple[int, int]) -> str:
    """What to do about a label (h, w) of another size than its photograph's."""
    found = orientation(image)
    if found >= 5 and tuple(got) == size[::-1]:
        return (
            f"its EXIF orientation ({found}) turns the photograph {_SAID[found]}, and the label seems drawn on the "
            f"stored pixels: {_OPTION}"
        )
    return "resize one of them (labels: nearest)"


def turned(images: Sequence[Path]) -> str:
    """What to hear about photographs that are turned: labels of the same size do not show it.  "" where none is."""
    found = [(path, orientation(path)) for path in images]
    some = [(path, number) for path, number in found if number > 1]
    if not some:
        return ""
    path, number = some[0]
    return (
        f"{len(some)} photograph(s) are turned as their EXIF orientation says ({path.name} {_SAID[number]}), and "
        f"labels taken as drawn on the turned picture; {_OPTION}"
    )
