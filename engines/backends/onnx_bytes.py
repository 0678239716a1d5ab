"""The number of windows that an ONNX file declares, changed without the onnx package, which a device need not have.

Only the file's own shape counts: TensorRT's parser settles shapes while it reads, so that an input resized afterwards
no longer fits what was made of the nodes.  A dimension below 128 is one byte in protobuf, so the file keeps its length.
Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.input 11 and output 12, ValueInfoProto.type 2,
TypeProto.tensor_type 1, Tensor.shape 2, TensorShapeProto.dim 1, Dimension.dim_value 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from engines.errors import DeployError

_SHAPE = (2, 1, 2, 1)  # from a ValueInfoProto to its dimensions
_BYTES, _VARINT = 2, 0


def with_batch(model: bytes, batch: int) -> bytes:
    """An ONNX file of (1, 3, H, W) -> (1, K, h, w) that says `batch`, 1 to 127, in place of 1.

    The graph must be neutral to the number of windows (see engines.proof.batch_gate.NEUTRAL).  Raises DeployError.
    """
    changed = bytearray(model)
    try:
        (graph,) = inside(model, (0, len(model)), 7)
        for field in (11, 12):
            (value,) = inside(model, graph, field)
            places = [value]
            for step in _SHAPE:
                places = [inner for place in places for inner in inside(model, place, step)]
            ((number, kind, start, stop),) = fields(model, places[0])
            if (number, kind, model[start:stop]) != (1, _VARINT, b"\x01"):
                raise ValueError(f"a first dimension {model[start:stop].hex()}")
            changed[start] = batch
    except (ValueError, IndexError) as error:
        raise DeployError(f"model.onnx: got {error}, expected one input and one output of one window") from error
    return bytes(changed)


def inside(data: bytes, span: tuple[int, int], wanted: int) -> list[tuple[int, int]]:
    """Where the messages in field `wanted` of the message at `span` lie."""
    return [(start, stop) for number, kind, start, stop in fields(data, span) if (number, kind) == (wanted, _BYTES)]


def fields(data: bytes, span: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, start, stop) of the value of every field of the message at `span`."""
    at, end = span
    while at < end:
        key, at = varint(data, at)
        kind, start = key & 7, at
        if kind == _VARINT:
            _, stop = varint(data, at)
        elif kind == _BYTES:
            length, start = varint(data, at)
            stop = start + length
        elif kind in (1, 5):
            stop = start + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"a field of wire type {kind}")
        if stop > end:
            raise ValueError("a message that is cut short")
        yield key >> 3, kind, start, stop
        at = stop


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
