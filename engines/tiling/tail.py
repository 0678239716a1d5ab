"""The tail of a decoder as a step of its own, after the engine: binding of tail.c.  See tail.h for the arithmetic.

An engine that is cut there gives small maps, and one pass makes logits of them:
``classify relu(bias + project direct + sum of maps, each resized to (h, w))``.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from engines.contract import Float32, Session, packed
from engines.errors import DeployError
from engines.files import DAMAGED_NPZ
from engines.records import read_record
from engines.tiling.core import library, threads_of

MAPS, PIXELS, CHUNK = 5, 64, 32  # TAIL_MAPS, TAIL_PIXELS, TAIL_CHUNK
SHARED = 48 * 1024  # bytes that a block of a GPU's threads may share without asking
ROWS_BYTES = 32  # of tail_rows

_WEIGHTS = ("project", "bias", "classify", "class_bias")
LAUNCH = np.dtype(
    [
        ("direct", np.uint64), ("maps", np.uint64, MAPS),
        *((name, np.uint64) for name in ("project", "bias", "classify", "class_bias", "logits")),
        ("map_h", np.int32, MAPS), ("map_w", np.int32, MAPS),
        *(
            (name, np.int32)
            for name in ("count", "windows", "height", "width", "inputs", "channels", "classes", "padded")
        ),
    ],
    align=True,
)  # fmt: skip


@dataclass(frozen=True)
class TailBlock:
    """A block of a GPU's threads: one kernel of tile.cu, as tail_sizes of tail.cuh has it.

    classes: that it adds up at most.  groups: warps that share them for the same 64 pixels.
    """

    classes: int
    groups: int

    @property
    def pixels(self) -> int:
        """Of one row."""
        return 128 if self.groups == 1 else 64

    @property
    def threads(self) -> int:
        return 32 * self.groups * self.pixels // 64

    def shared(self, inputs: int) -> int:
        """Bytes: pixels, weights of a chunk's channels and of its classes, hidden channels, where maps' rows lie."""
        row, stage = self.pixels + 4, 16 if self.classes > 80 else CHUNK
        hidden = CHUNK * row if self.groups > 1 else 0
        return 4 * (inputs * (row + CHUNK) + stage * self.classes + hidden) + MAPS * ROWS_BYTES


BLOCKS = (
    TailBlock(8, 1),
    TailBlock(12, 1),
    TailBlock(20, 1),
    TailBlock(24, 1),
    TailBlock(48, 2),
    TailBlock(80, 2),
    TailBlock(160, 4),
)


@dataclass(frozen=True)
class TailShape:
    """height, width: of the logits.  inputs: channels of the map of that size that is projected here, 0 without one.

    channels: of the decoder, and of every resized map.  maps: their (height, width).
    """

    height: int
    width: int
    inputs: int
    channels: int
    classes: int
    maps: tuple[tuple[int, int], ...]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TailShape:
        """Raises DeployError, also where no kernel is made for it."""
        shape = read_record(cls, body, "manifest: tail", "build the bundle again")
        reason = shape.unfit()
        if reason:
            raise DeployError(f"manifest: tail: {reason}; build the bundle again")
        return shape

    def unfit(self) -> str | None:
        """Why this tail cannot be computed here; None where it can."""
        numbers = (self.height, self.width, self.channels, self.classes, *(side for pair in self.maps for side in pair))
        if min(numbers) < 1 or max(*numbers, self.inputs) > 2**20 or self.inputs < 0:
            return f"got sizes {numbers} and {self.inputs} inputs, expected 1 or more"
        if len(self.maps) > MAPS:
            return f"got {len(self.maps)} resized maps, expected {MAPS} at most"
        if self.inputs % 4 or self.channels % 4:
            return f"got {self.inputs} and {self.channels} channels, expected multiples of 4"
        if self.classes > BLOCKS[-1].classes:
            return f"got {self.classes} classes, expected {BLOCKS[-1].classes} at most"
        if any(rows > self.height or columns > self.width for rows, columns in self.maps):
            return f"got maps {self.maps} for logits {(self.height, self.width)}, expected no larger ones"
        widest = max((columns * self.channels for _, columns in self.maps), default=0)
        if widest > 2**31:
            return f"got maps with rows of {widest} values, expected {2**31} at most"
        if self.shared > SHARED:
            return (
                f"its {self.inputs} inputs take {self.shared} bytes of a GPU's shared memory, expected {SHARED} at most"
            )
        return None

    @property
    def padded(self) -> int:
        return -(-self.block.classes // 8) * 8

    @property
    def outputs(self) -> tuple[tuple[int, int, int], ...]:
        """(rows, columns, channels) of one window's maps, as the engine gives them, the one that is projected first."""
        first = ((self.height, self.width, self.inputs),) if self.inputs else ()
        return (*first, *((rows, columns, self.channels) for rows, columns in self.maps))

    @property
    def block(self) -> TailBlock:
        return next(block for block in BLOCKS if block.classes >= self.classes)

    @property
    def shared(self) -> int:
        """Bytes that the threads of a block share."""
        return self.block.shared(self.inputs)

    @property
    def macs(self) -> int:
        """Multiply-adds of one window: the projection, the samples (three for each of a map's values), the classes."""
        each = self.inputs + 3 * len(self.maps) + self.classes
        return self.height * self.width * self.channels * each

    def bytes(self, itemsize: int) -> int:
        """What one window reads and writes, each map once.  itemsize: of the maps' type; logits are float32."""
        return itemsize * sum(map(prod, self.outputs)) + 4 * self.classes * self.height * self.width


@dataclass(frozen=True)
class Tail:
    """project (inputs, channels), bias (channels), classify (channels, padded), class_bias (padded): float32."""

    shape: TailShape
    project: Float32
    bias: Float32
    classify: Float32
    class_bias: Float32

    @classmethod
    def of(cls, shape: TailShape, project: Float32, bias: Float32, classify: Float32, class_bias: Float32) -> Tail:
        """From convolutions' weights: project (channels, inputs), classify (classes, channels).  Raises DeployError."""
        wanted = (shape.channels, shape.inputs), (shape.channels,), (shape.classes, shape.channels), (shape.classes,)
        given = project, bias, classify, class_bias
        if tuple(array.shape for array in given) != wanted or any(array.dtype != np.float32 for array in given):
            raise DeployError(f"tail: got weights {[array.shape for array in given]}, expected {wanted} float32")
        beyond = shape.padded - shape.classes
        return cls(
            shape, np.ascontiguousarray(project.T), np.ascontiguousarray(bias),
            np.ascontiguousarray(np.pad(classify.T, ((0, 0), (0, beyond)))), np.pad(class_bias, (0, beyond)),
        )  # fmt: skip

    @classmethod
    def load(cls, content: bytes, shape: TailShape) -> Tail:
        """From a file that `save` wrote.  Raises DeployError."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as data:
                given = [np.asarray(data[name]) for name in _WEIGHTS]
        except DAMAGED_NPZ as error:
            raise DeployError(f"tail.npz: {error}; build the bundle again from the checkpoint") from error
        return cls.of(shape, *given)

    def save(self, path: Path) -> None:
        """As `of` takes them: project (channels, inputs), classify (classes, channels)."""
        classes = self.shape.classes
        arrays = self.project.T, self.bias, self.classify.T[:classes], self.class_bias[:classes]
        named: dict[str, Any] = dict(zip(_WEIGHTS, arrays, strict=True))
        np.savez_compressed(path, **named)

    def logits(self, maps: Float32, windows: int, threads: int = 0) -> Float32:
        """Logits (windows, K, h, w) of the maps of `windows` windows, packed as `engines.contract.packed` says.

        maps: (P,) float32.  threads: 0 means all cores of this process.  Raises DeployError on another size.
        """
        shape = self.shape
        offsets, total = packed([windows * prod(size) for size in shape.outputs])
        if maps.shape != (total,) or maps.dtype != np.float32 or not maps.flags.c_contiguous:
            raise DeployError(f"tail: got maps {maps.shape} {maps.dtype}, expected ({total},) float32, contiguous")
        out = np.empty((windows, shape.classes, shape.height, shape.width), np.float32)
        launch = launch_of(
            self.shape, [maps.ctypes.data + 4 * offset for offset in offsets],
            [array.ctypes.data for array in self.weights], out.ctypes.data, windows,
        )  # fmt: skip
        count = threads_of(threads)
        workspace = np.empty(count * PIXELS * shape.padded, np.float32)
        status = library().tail_run(ctypes.c_void_p(launch.ctypes.data), count, workspace.ctypes.data)
        if status:
            raise DeployError(f"tail: the library refuses {shape} (status {status}); report this model")
        return out

    @property
    def weights(self) -> tuple[Float32, Float32, Float32, Float32]:
        return self.project, self.bias, self.classify, self.class_bias


class HostTail:
    """An engine that ends in maps, with its tail: a session whose answer is logits.  threads: as for `Tail.logits`."""

    def __init__(self, engine: Session, tail: Tail, threads: int = 0) -> None:
        self._engine, self._tail, self._threads = engine, tail, threads

    def run(self, windows: Float32) -> Float32:
        return self._tail.logits(self._engine.run(windows), windows.shape[0], self._threads)


def launch_of(shape: TailShape, maps: list[int], weights: list[int], logits: int, windows: int) -> Any:
    """tail_launch of tail.h, an array of one.  maps, weights, logits: addresses, in the order of their fields."""
    record = np.zeros(1, LAUNCH)
    resized = maps[1:] if shape.inputs else maps
    record["direct"] = maps[0] if shape.inputs else 0
    beyond = MAPS - len(resized)
    record["maps"] = [*resized, *[0] * beyond]
    record["map_h"], record["map_w"] = ([*(pair[axis] for pair in shape.maps), *[0] * beyond] for axis in (0, 1))
    for name, address in zip(("project", "bias", "classify", "class_bias"), weights, strict=True):
        record[name] = address
    record["logits"], record["windows"], record["count"] = logits, windows, len(resized)
    for name in ("height", "width", "inputs", "channels", "classes", "padded"):
        record[name] = getattr(shape, name)
    return record
