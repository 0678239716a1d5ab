"""The types of the scales that an ONNX file quantises with, read without the onnx package and before any parser.

Field numbers are those of onnx.proto: ModelProto.graph 7, GraphProto.node 1 and initializer 5, NodeProto.input 1 and
op_type 4, TensorProto.data_type 2 and name 8.
"""

from __future__ import annotations

from collections.abc import Iterator

from engines.backends.onnx_bytes import fields, inside, varint

_HALVES = {10: "fp16", 16: "bf16"}  # of TensorProto.DataType
_FP8 = 17  # FLOAT8E4M3FN
_QUANTISERS = (b"QuantizeLinear", b"DequantizeLinear")
_SCALE = 1  # which input


def half_scales(model: bytes) -> list[str]:
    """The half types among the scales: of ``fp16`` and ``bf16``, sorted.  What is no ONNX is left to the parser."""
    try:
        (graph,) = inside(model, (0, len(model)), 7)
        scales = set(_scales(model, graph))
        return sorted({kind for name, kind in _halves(model, graph) if name in scales})
    except (ValueError, IndexError):
        return []


def quantises_in_fp8(model: bytes) -> bool:
    """Whether a constant of the graph is E4M3, as the zero point of an FP8 quantisation is."""
    try:
        (graph,) = inside(model, (0, len(model)), 7)
        return any(_kind(model, tensor) == _FP8 for tensor in inside(model, graph, 5))
    except (ValueError, IndexError):
        return False


def _kind(model: bytes, tensor: tuple[int, int]) -> int:
    kinds = [varint(model, start)[0] for number, _, start, _ in fields(model, tensor) if number == 2]
    return kinds[-1] if kinds else 0


def _scales(model: bytes, graph: tuple[int, int]) -> Iterator[bytes]:
    for node in inside(model, graph, 1):
        inputs = inside(model, node, 1)
        if any(model[a:b] in _QUANTISERS for a, b in inside(model, node, 4)) and len(inputs) > _SCALE:
            yield model[slice(*inputs[_SCALE])]


def _halves(model: bytes, graph: tuple[int, int]) -> Iterator[tuple[bytes, str]]:
    for tensor in inside(model, graph, 5):
        kind = _kind(model, tensor)
        if kind in _HALVES:
            for start, stop in inside(model, tensor, 8):
                yield model[start:stop], _HALVES[kind]
