"""A raster cut into panels of columns that fit in memory, and into runs of rows, with the windows of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engines.errors import DeployError
from engines.rasters.gdal import RasterFile
from engines.rasters.place import Box


@dataclass(frozen=True)
class Part:
    """Of one axis.  kept: [start, end) of the pixels that it decides.  seen: of those under its windows."""

    kept: tuple[int, int]
    seen: tuple[int, int]


def part(starts: Sequence[int], window: int, length: int, kept: tuple[int, int], margin: int = 0) -> Part:
    """The windows (their first pixels: `starts`) that touch `kept`, which alone give an axis of `length` pixels.

    Placed alone they lie as among all: those of an axis that is cut at the first one's start and at the last one's end.
    margin: what they read beyond what they label; more windows are seen then, though nobody looks at their labels.
    """
    touching = [start for start in starts if start < kept[1] and start + window > kept[0]]
    before, behind = touching[0] - margin, min(touching[-1] + window, length) + margin
    first = max((start for start in starts if start <= before), default=0)
    ends = [min(start + window, length) for start in starts]
    return Part(kept, (first, min((end for end in ends if end >= behind), default=length)))


def parts(
    starts: Sequence[int], window: int, length: int, most: int, step: int, wanted: tuple[int, int], margin: int = 0
) -> list[Part]:  # fmt: skip
    """Of pixels `wanted`: `most` windows at most in each, and borders every so many steps of `step` pixels.

    margin: see `part`; windows that are seen for it alone are not counted.
    Raises DeployError where `most` is too few for that.
    """
    found: list[Part] = []
    begin = wanted[0]
    while begin < wanted[1]:
        first = next(index for index, start in enumerate(starts) if start + window > begin)
        after = first + most
        end = wanted[1]
        if after < len(starts) and starts[after] < end:
            end = begin + (starts[after] - begin) // step * step
        if end <= begin:
            raise DeployError(f"raster: got {most} windows side by side, expected more for borders every {step} pixels")
        found.append(part(starts, window, length, (begin, end), margin))
        begin = end
    return found


def box_of(
    file: RasterFile, window: tuple[int, int, int, int] | None, bbox: tuple[float, float, float, float] | None
) -> Box:  # fmt: skip
    """What of the raster is asked for: X, Y, W, H in pixels, or west, south, east, north on the map.

    Raises DeployError where that lies outside.
    """
    if bbox is not None:
        wanted, what = file.place.pixels(*bbox), "--bbox"
    elif window is not None:
        x, y, width, height = window
        wanted, what = (y, y + height, x, x + width), "--window"
    else:
        return 0, file.height, 0, file.width
    box = (
        max(wanted[0], 0), min(wanted[1], file.height), max(wanted[2], 0), min(wanted[3], file.width)
    )  # fmt: skip
    if box[0] >= box[1] or box[2] >= box[3]:
        raise DeployError(
            f"{what}: got rows {wanted[0]} to {wanted[1]}, columns {wanted[2]} to {wanted[3]}, expected a part of "
            f"{file.path}, which has {file.height} rows and {file.width} columns"
        )
    return box
