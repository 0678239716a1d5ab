"""From an ONNX file to TensorRT's network, with the types that the file says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.backends.onnx_bytes import weights_of, with_batch
from engines.backends.tensorrt.messages import errors_of, parse_error
from engines.backends.tensorrt.sdk import member, name_of, network_flags
from engines.errors import DeployError
from engines.files import file_sha256

QUANTISERS = ("QUANTIZE", "DEQUANTIZE")
_FLOATS = ("FLOAT", "HALF", "BF16")
_REMEDY = "it has a number of windows written into it: build from the model with --batch"


class ParsedNetwork:
    """A network, and what must live as long as it does: TensorRT holds the parser's weights by address."""

    def __init__(
        self, sdk: Any, title: str, builder: Any, logger: Any, model: Path, typed: bool, batch: int = 1
    ) -> None:
        """typed: False lets the builder's flags decide on precision.  batch: windows at once, of a neutral graph.

        The batch is set in the file: the parser settles shapes while it reads.  Raises DeployError naming the node
        refused, or a graph that is tied to another batch.
        """
        self.network = builder.create_network(network_flags(sdk, typed))
        self._parser = sdk.OnnxParser(self.network, logger)
        self._bytes = file_for(model, batch)
        if not self._parser.parse(self._bytes, str(model)):
            error = parse_error(title, model.name, self._parser, logger)
            raise error if batch == 1 else DeployError(f"batch: {batch} windows: {error}; {_REMEDY}")
        if self.network.num_inputs != 1 or self.network.num_outputs < 1:
            raise DeployError(
                f"{title}: {model.name} has {self.network.num_inputs} inputs and {self.network.num_outputs} outputs, "
                "expected one input, and outputs; build the bundle again"
            )
        self._require(batch, logger)

    def _require(self, batch: int, logger: Any) -> None:
        try:
            given = [self.network.get_output(index) for index in range(self.network.num_outputs)]
            shapes = [tuple(tensor.shape) for tensor in (self.network.get_input(0), *given)]
        except RuntimeError as error:  # of a shape that does not follow from the input's
            reason = (errors_of(logger) or [str(error)])[0]
            raise DeployError(f"batch: {batch} windows do not go through this graph: {reason}; {_REMEDY}") from error
        if min(shapes[0], default=1) < 0:
            raise DeployError(
                f"input: got {shapes[0]}, expected a fixed size of every axis; build a bundle from it, which has one"
            )
        if any(shape[:1] != (batch,) for shape in shapes):
            raise DeployError(
                f"batch: got {shapes[0]} in and {' '.join(map(str, shapes[1:]))} out, expected {batch} windows; "
                f"{_REMEDY}"
            )

    @property
    def layers(self) -> Iterator[Any]:
        return (self.network.get_layer(index) for index in range(self.network.num_layers))


def file_for(model: Path, batch: int) -> bytes:
    """The ONNX file `model` for `batch` windows at once.  Its weights may lie beside it: parsers need its path too."""
    return model.read_bytes() if batch == 1 else with_batch(model.read_bytes(), batch)


def model_sha256(model: Path) -> str:
    """Of the ONNX file `model`, and of the weights beside it if it does not hold them itself.  Raises DeployError."""
    graph, weights = file_sha256(model), weights_of(model)
    return graph if weights is None else hashlib.sha256(f"{graph} {file_sha256(weights)}".encode()).hexdigest()


def outputs(layer: Any) -> Iterator[Any]:
    return (layer.get_output(index) for index in range(layer.num_outputs))


def held_types(layers: Iterator[Any]) -> Counter[str]:
    """How many tensors there are of each DataType, by its name; and of layers that quantise or dequantise."""
    held: Counter[str] = Counter()
    for layer in layers:
        held.update(name_of(tensor.dtype) for tensor in outputs(layer))
        if name_of(layer.type) in QUANTISERS:
            held[name_of(layer.type)] += 1
    return held


def keep_types(sdk: Any, parsed: ParsedNetwork, settings: Any) -> Counter[str]:
    """For networks that are not strongly typed: allow what the graph holds, and hold its FP32 islands to FP32.

    Layers beside a quantiser are left alone: a type set on them would keep TensorRT from running them in INT8.
    Returns what was set, for the log.
    """
    held = held_types(parsed.layers)
    flags = [
        name
        for name, wanted in (("FP16", held["HALF"]), ("INT8", held["QUANTIZE"] + held["DEQUANTIZE"]))
        if wanted
    ]  # fmt: skip
    told = Counter[str]()
    if flags:
        float32 = member(sdk, "DataType", "FLOAT")
        quantised = {t.name for la in parsed.layers if name_of(la.type) in QUANTISERS for t in outputs(la)}
        for layer in parsed.layers:
            if _is_island(layer, quantised):
                layer.precision = float32
                for index in range(layer.num_outputs):
                    layer.set_output_type(index, float32)
                told["FP32 layers"] += 1
        flags.append("OBEY_PRECISION_CONSTRAINTS")
    for name in flags:
        flag = member(sdk, "BuilderFlag", name)
        if flag is None:
            raise DeployError(f"precision: this TensorRT has no builder flag {name}; use another --precision")
        settings.set_flag(flag)
        told[name] += 1
    return told


def _is_island(layer: Any, quantised: set[str]) -> bool:
    """Whether a layer computes in FP32: all it makes is FP32, and what floats it takes are FP32."""
    if name_of(layer.type) in (*QUANTISERS, "CONSTANT", "SHAPE"):
        return False
    made = [name_of(tensor.dtype) for tensor in outputs(layer)]
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    taken = [tensor for tensor in inputs if tensor is not None]
    if any(tensor.name in quantised for tensor in taken):
        return False
    floats = [name_of(tensor.dtype) for tensor in taken if name_of(tensor.dtype) in _FLOATS]
    return bool(made) and set(made) == {"FLOAT"} and set(floats) <= {"FLOAT"}
