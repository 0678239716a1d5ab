"""Words of the command line -> values.  Each raises argparse.ArgumentTypeError, or ValueError, on what it is not."""

from __future__ import annotations

import argparse
import ast
from typing import Any

from engines.spec import MAX_BANDS

AUTO = "auto"
MAX_COUNT = 2**31 - 1  # of the int32 that SDKs take
MAX_MEBIBYTES = 2**44 - 1  # whose bytes fit size_t


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value


def count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"got {value}, expected 0 or more, up to {MAX_COUNT}")
    return value


def gpu_or_all(text: str) -> int | str:
    return text if text == "all" else count(text)


def mebibytes(text: str) -> int:
    """In bytes."""
    return up_to(MAX_MEBIBYTES, text) * 2**20


def up_to(most: int, text: str) -> int:
    value = positive(text)
    if value > most:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 to {most}")
    return value


def number(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):  # NaN neither: a gate that compares with it would never fail
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 or more")
    return value


def share(text: str) -> float:
    value = number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 to 1")
    return value


def above_zero(text: str) -> float:
    if not (value := number(text)):
        raise argparse.ArgumentTypeError(f"got {text}, expected more than 0")
    return value


def inside(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected more than 0 and less than 1")
    return value


def label(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 255:
        raise argparse.ArgumentTypeError(f"got {value}, expected 0 to 255")
    return value


def percent(text: str) -> float:
    """``0.7``, or ``70`` for percent.  1 is all."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"got {value:g}, expected 0 to 1, or up to 100 for percent")
    return value / 100 if value > 1 else value


def size(text: str) -> tuple[int, int]:
    """``1024`` or ``512x1024`` (height x width)."""
    parts = [positive(part) for part in text.lower().split("x")]
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected N or HxW")
    return parts[0], parts[-1]


def numbers(text: str) -> tuple[float, ...]:
    """``0.75,1,1.25``"""
    return tuple(float(part) for part in text.split(","))


def size_or_auto(text: str) -> tuple[int, int] | str:
    return AUTO if text == AUTO else size(text)


def named(text: str) -> tuple[str, Any]:
    """``width=32`` -> ("width", 32); what is no Python literal is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


def factors(text: str) -> tuple[float, ...]:
    """``0.5,1,2``: each of a tenth to ten, once, in their order."""
    found = tuple(float(part) for part in text.split(","))
    if len(set(found)) < len(found) or not all(0.1 <= factor <= 10 for factor in found):
        raise argparse.ArgumentTypeError(f"got {text}, expected different factors of 0.1 to 10, such as 0.5,1,2")
    return tuple(sorted(found))


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def width_height(text: str) -> tuple[int, int]:
    """``2048x1024`` (width x height, as images are named) -> (height, width)."""
    parts = [positive(part) for part in text.lower().split("x")]
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT")
    return parts[1], parts[0]


def by_channel(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not 1 <= len(values) <= MAX_BANDS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number for each channel, as 123.7,116.3,103.5")
    return values


def bands(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def interval(text: str) -> tuple[float, float]:
    """``0..4095``."""
    low, dots, high = text.partition("..")
    if not dots or not float(low) < float(high) < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LOW..HIGH such as 0..4095")
    return float(low), float(high)


def box(text: str) -> tuple[int, int, int, int]:
    """``X,Y,W,H`` in pixels."""
    x, y, width, height = (int(part) for part in text.split(","))
    if min(x, y) < 0 or min(width, height) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected X,Y,W,H: the first column and row, width and height")
    return x, y, width, height


def bounds(text: str) -> tuple[float, float, float, float]:
    """``WEST,SOUTH,EAST,NORTH`` in map coordinates."""
    west, south, east, north = (float(part) for part in text.split(","))
    if not (-float("inf") < west < east < float("inf") and -float("inf") < south < north < float("inf")):
        raise argparse.ArgumentTypeError(f"got {text}, expected WEST,SOUTH,EAST,NORTH with west < east, south < north")
    return west, south, east, north


def shard(text: str) -> tuple[int, int]:
    """``3/16``: the third of sixteen."""
    index, total = (int(part) for part in text.split("/"))
    if not 1 <= index <= total:
        raise argparse.ArgumentTypeError(f"got {text}, expected I/N with 1 <= I <= N")
    return index, total


def cluster(text: str) -> str:
    """``auto`` or ``HOST:PORT``, of a Ray cluster that this machine is part of."""
    host, colon, port = text.rpartition(":")
    if text not in (AUTO, "local") and not (colon and port.isdigit() and "/" not in host):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected auto or HOST:PORT of a cluster that this machine is part of; INPUT goes before it"
        )
    return text
