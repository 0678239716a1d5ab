"""Mutations that keep a format's shell whole, so that what lies inside is reached."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, int, random.Random, Callable[[bytes, int], bytes]], bytes]

_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 255, 256, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), "", "x", "\u0000", "\ud800", "../../x", "/etc/passwd", "x" * 5000, [], {}, [[]], [0], {"": 0},
]  # fmt: skip


def as_json(data: bytes, limit: int, rng: random.Random, plain: Callable[[bytes, int], bytes]) -> bytes:
    """One to three changes of a JSON document; of bytes that are none, or one time in eight, libFuzzer's own."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return plain(data, limit)
    if rng.random() < 1 / 8:
        return plain(data, limit)
    for _ in range(rng.randint(1, 3)):
        body = _changed(body, rng)
    return json.dumps(body).encode("utf-8", "surrogatepass")[:limit]


def _changed(value: Any, rng: random.Random) -> Any:
    """A copy with one place changed: replaced, removed, doubled, renamed or nested."""
    children = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not children or rng.random() < 1 / 10:
        return rng.choice([rng.choice(_ODD), [value], {"x": value}, _near(value, rng)])
    key = rng.choice(children)
    copy = value.copy()
    action = rng.random()
    if action < 0.7:
        copy[key] = _changed(value[key], rng)
    elif action < 0.8:
        del copy[key]
    elif isinstance(copy, list):
        copy[key:key] = [rng.choice([value[key], *_ODD])] * rng.choice((1, 2, 300))
    else:
        copy[rng.choice([f"{key}x", "__class__", "\ud800", rng.choice(list(copy) or ["x"])])] = copy.pop(key)
    return copy


def _near(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return rng.choice(_ODD)
    if isinstance(value, str):
        return rng.choice([value[:-1], value + value, value.upper(), value[::-1]])
    return rng.choice([value + 1, value - 1, -value, value * 2, str(value), float(value) if abs(value) < 2**53 else 0])


def as_png(data: bytes, limit: int, rng: random.Random, plain: Callable[[bytes, int], bytes]) -> bytes:
    """libFuzzer's mutation of one chunk's contents, with its length and checksum made right again."""
    chunks = _chunks(data)
    if not chunks or rng.random() < 1 / 8:
        return plain(data, limit)
    index = rng.randrange(len(chunks))
    kind, body = chunks[index]
    if kind == b"IDAT" and rng.random() < 0.5:
        try:
            body = zlib.compress(plain(zlib.decompress(body), 1 << 16))
        except zlib.error:
            body = plain(body, 1 << 16)
    else:
        body = plain(body, 1 << 16)
    chunks[index] = kind, body
    if rng.random() < 0.1:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(chunks))
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return (data[:8] + b"".join(parts))[:limit]


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found
