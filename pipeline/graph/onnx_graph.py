"""The ONNX graph on its way from the exporter to the engine, with what was done to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx

from engines.contract import Float32
from engines.errors import DeployError


@dataclass(frozen=True)
class Step:
    """One pass over the graph.

    count: nodes after it.  declined: why it left alone what it looked at, or ``""``.  places: how many it changed.
    macs_saved: multiply-adds that one window no longer needs.  ms_saved: measured engine time of one window, or None.
    """

    rule: str
    count: int
    declined: str = ""
    places: int = 0
    macs_saved: int = 0
    ms_saved: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class OnnxGraph:
    """A static-shape model: input `image` (1, 3, H, W) float32, output `logits` (1, K, h, w) float32."""

    model: onnx.ModelProto
    input_shape: tuple[int, int, int, int]
    output_shape: tuple[int, int, int, int]
    history: tuple[Step, ...] = ()

    def then(self, model: onnx.ModelProto, rule: str) -> OnnxGraph:
        """The same graph after a pass that must not change its interface."""
        graph = from_model(model, (*self.history, Step(rule, len(model.graph.node))))
        if (graph.input_shape, graph.output_shape) != (self.input_shape, self.output_shape):
            raise DeployError(
                f"{rule}: changed {self.input_shape} -> {self.output_shape} into "
                f"{graph.input_shape} -> {graph.output_shape}; report this with the model"
            )
        return graph

    def declined(self, rule: str, reason: str) -> OnnxGraph:
        return replace(self, history=(*self.history, Step(rule, len(self.model.graph.node), reason)))


def from_model(model: onnx.ModelProto, history: tuple[Step, ...]) -> OnnxGraph:
    """Check `model` and read its interface.  Raises DeployError when it is not one image in, one logits map out."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DeployError(f"onnx: the graph is invalid: {' '.join(str(error).split())[:300]}") from error
    # A graph input that is also an initializer is a default value (IR < 4), not something to feed.
    constants = {init.name for init in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise DeployError(
            f"onnx: got inputs {[v.name for v in inputs]} and outputs {[v.name for v in model.graph.output]}, "
            "expected one image and one logits map; export the model with only those"
        )
    return OnnxGraph(model, _shape(inputs[0], "input"), _shape(model.graph.output[0], "output"), history)


def _shape(value: onnx.ValueInfoProto, role: str) -> tuple[int, int, int, int]:
    tensor = value.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    if tensor.elem_type != onnx.TensorProto.FLOAT or len(dims) != 4 or min(dims) < 1:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        wanted = "(1, 3, H, W)" if role == "input" else "(1, classes, h, w)"
        raise DeployError(f"onnx {role} {value.name!r}: got {kind} {dims}, expected float {wanted} with known sizes")
    n, c, h, w = dims
    return n, c, h, w


def run_onnx(graph: OnnxGraph, batches: list[Float32]) -> Float32:
    """Logits (M, K, h, w) of M inputs (1, 3, H, W), by ONNX Runtime on the CPU without its graph optimisations.

    Raises DeployError when it cannot run the graph.
    """
    session = open_onnx(graph.model)
    name = session.get_inputs()[0].name
    with _refusals():
        return np.concatenate([session.run(None, {name: batch})[0] for batch in batches])


def open_onnx(model: onnx.ModelProto) -> Any:
    """An ONNX Runtime session on the CPU.  Raises DeployError when it refuses the graph.

    Optimisations are off so that what is verified is the graph as written, not a graph that ORT rewrote.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # its errors arrive as exceptions
    with _refusals():
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@contextmanager
def _refusals() -> Iterator[None]:
    import onnxruntime as ort

    kinds = ort.capi.onnxruntime_pybind11_state
    try:
        yield
    except (
        kinds.Fail,
        kinds.NotImplemented,
        kinds.InvalidGraph,
        kinds.InvalidArgument,
        kinds.RuntimeException,
    ) as error:
        raise DeployError(f"onnx: ONNX Runtime refuses the graph: {' '.join(str(error).split())[:300]}") from error
