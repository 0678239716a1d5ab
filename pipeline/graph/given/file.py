"""A user's .onnx, read from the disk, with what damaged and stand-in files raise as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as passes
from google.protobuf.message import DecodeError

from engines.errors import DeployError
from engines.files import refuse_pointer
from pipeline.graph.proto import load

SUFFIX = ".onnx"

# What onnx and onnx_ir raise on damaged files, found by mutating them (tests/fuzz).
_DAMAGED = (DecodeError, OSError, ir.serde.SerdeError, ValueError, RuntimeError, TypeError, LookupError, AttributeError)


def is_onnx(model: str | Path) -> bool:
    """By the ending of the name, in any case."""
    return str(model).lower().endswith(SUFFIX)


def read_file(path: Path) -> ir.Model:
    """The graph as it is written there, with its weights and without functions.  Raises DeployError."""
    with readable(path):
        refuse_pointer(path, "model")
        model = load(path)
        if not len(model.graph):
            raise DeployError(f"model {path}: not an ONNX graph, or an empty one; expected a segmentation network")
        passes.TopologicalSortPass()(model)  # converters to halves append the casts of the image, which come first
        if model.functions:
            model = passes.InlinePass()(model).model
        for node in model.graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.STRING:
                    attribute.as_string()  # TypeError where the bytes are no text, which the checker lets pass
        return model


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What damaged files raise, some of them only when a tensor is looked at, as a DeployError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DeployError(f"model {path}: no such file (or its external data is missing)") from error
    except _DAMAGED as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DeployError(f"model {path}: not a readable ONNX file ({line[:300]})") from error
