"""The number of windows that an ONNX file declares, and where its weights are, without the onnx package, which a device
need not have.

Only the file's own shape counts: TensorRT's parser settles shapes while it reads, so that an input resized afterwards
no longer fits what was made of the nodes.  A dimension below 128 is one byte in protobuf, so the file keeps its length.
Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.input 11 and output 12, ValueInfoProto.type 2,
TypeProto.tensor_type 1, Tensor.shape 2, TensorShapeProto.dim 1, Dimension.dim_value 1; GraphProto.node 1 and
initializer 5, NodeProto.attribute 5, AttributeProto.t 5, TensorProto.external_data 13, its key 1 and value 2.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import DeployError

_SHAPE = (2, 1, 2, 1)  # from a ValueInfoProto to its dimensions
_BYTES, _VARINT = 2, 0


def with_batch(model: bytes, batch: int) -> bytes:
    """An ONNX file of (1, 3, H, W) -> (1, ...), one output or several, that says `batch`, 1 to 127, in place of 1.

    The graph must be neutral to the number of windows (see engines.proof.batch_gate.NEUTRAL).  Raises DeployError.
    """
    changed = bytearray(model)
    try:
        (graph,) = inside(model, (0, len(model)), 7)
        (image,), outputs = inside(model, graph, 11), inside(model, graph, 12)
        if not outputs:
            raise ValueError("no output")
        for value in (image, *outputs):
            places = [value]
            for step in _SHAPE:
                places = [inner for place in places for inner in inside(model, place, step)]
            ((number, kind, start, stop),) = fields(model, places[0])
            if (number, kind, model[start:stop]) != (1, _VARINT, b"\x01"):
                raise ValueError(f"a first dimension {model[start:stop].hex()}")
            changed[start] = batch
    except (ValueError, IndexError) as error:
        raise DeployError(f"model.onnx: got {error}, expected one input, and outputs of one window") from error
    return bytes(changed)


@contextmanager
def file_with_batch(model: Path, batch: int) -> Iterator[Path]:
    """The ONNX file `model` for `batch` windows, in its folder, where its weights may lie; gone afterwards."""
    if batch == 1:
        yield model
        return
    with tempfile.NamedTemporaryFile(dir=model.parent, prefix=".", suffix=model.suffix) as file:
        file.write(with_batch(model.read_bytes(), batch))
        file.flush()
        yield Path(file.name)


def weights_of(model: Path) -> Path | None:
    """The file beside `model` that holds its weights: ``NAME.data``; None where `model` holds them itself.

    Raises DeployError where they are to come from any other place, or are not there.
    """
    own = model.with_name(f"{model.name}.data")
    places = _places(model.read_bytes())
    if not places:
        return None
    if places != {own.name} or not own.is_file():
        raise DeployError(
            f"{model.name}: got weights in {', '.join(sorted(places))}, expected {own.name} beside it; copy the whole "
            "bundle, or build it again"
        )
    return own


def _places(model: bytes) -> set[str]:
    """The files that tensors of an ONNX file lie in.  What is no ONNX is left to its reader."""
    try:
        (graph,) = inside(model, (0, len(model)), 7)
        tensors = inside(model, graph, 5)
        for node in inside(model, graph, 1):
            tensors += [tensor for attribute in inside(model, node, 5) for tensor in inside(model, attribute, 5)]
        entries = [entry for tensor in tensors for entry in inside(model, tensor, 13)]
        pairs = [[model[slice(*inside(model, entry, field)[0])] for field in (1, 2)] for entry in entries]
    except (ValueError, IndexError):
        return set()
    return {value.decode(errors="replace") for key, value in pairs if key == b"location"}


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
