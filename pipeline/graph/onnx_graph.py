"""The ONNX graph on its way from the exporter to the engine, with what was done to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from engines.contract import Float32
from engines.errors import DeployError
from pipeline.graph.proto import LARGEST, settle, stored, weight_bytes

Shape4 = tuple[int, int, int, int]


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
    """A static-shape model: input `image` (1, 3, H, W) float32, output `logits` (1, K, h, w) float32.

    Every value of `model` has its type and shape.  It is shared: whoever changes it takes a `clone` first.
    """

    model: ir.Model
    input_shape: Shape4
    output_shape: Shape4
    history: tuple[Step, ...] = ()

    def then(
        self, model: ir.Model, rule: str, *, declined: str = "", places: int = 0, macs_saved: int = 0
    ) -> OnnxGraph:
        """The same graph after a pass that must not change its interface; what else is for its Step."""
        step = Step(rule, len(model.graph), declined=declined, places=places, macs_saved=macs_saved)
        graph = OnnxGraph(model, *_interface(model), (*self.history, step))
        if (graph.input_shape, graph.output_shape) != (self.input_shape, self.output_shape):
            raise DeployError(
                f"{rule}: changed {self.input_shape} -> {self.output_shape} into "
                f"{graph.input_shape} -> {graph.output_shape}; report this with the model"
            )
        return graph

    def declined(self, rule: str, reason: str) -> OnnxGraph:
        return replace(self, history=(*self.history, Step(rule, len(self.model.graph), reason)))


def from_model(model: ir.Model, history: tuple[Step, ...]) -> OnnxGraph:
    """Check `model`, infer its types and shapes in place, and read its interface.

    Raises DeployError when it is invalid, or not one image in, one logits map out.
    """
    settle(model)
    return OnnxGraph(model, *_interface(model), history)


def _interface(model: ir.Model) -> tuple[Shape4, Shape4]:
    inputs, outputs = model.graph.inputs, model.graph.outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise DeployError(
            f"onnx: got inputs {[v.name for v in inputs]} and outputs {[v.name for v in outputs]}, "
            "expected one image and one logits map; export the model with only those"
        )
    return _shape(inputs[0], "input"), _shape(outputs[0], "output")


def _shape(value: ir.Value, role: str) -> Shape4:
    dims = [size if isinstance(size, int) else 0 for size in value.shape or ()]
    if value.dtype != ir.DataType.FLOAT or len(dims) != 4 or min(dims) < 1:
        kind = "undefined" if value.dtype is None else value.dtype.name.lower()
        wanted = "(1, 3, H, W)" if role == "input" else "(1, classes, h, w)"
        raise DeployError(f"onnx {role} {value.name!r}: got {kind} {dims}, expected float {wanted} with known sizes")
    n, c, h, w = dims
    return n, c, h, w


def run_onnx(graph: OnnxGraph, batches: list[Float32]) -> Float32:
    """Logits (M, K, h, w) of M inputs (1, 3, H, W), by ONNX Runtime on the CPU without its graph optimisations.

    Raises DeployError when it cannot run the graph.
    """
    return run_model(graph.model, batches)


def run_model(model: ir.Model, batches: Sequence[Float32]) -> Float32:
    """As `run_onnx`, for a graph that may take another number of images."""
    return np.concatenate(list(run_each(model, batches)))


def run_each(model: ir.Model, batches: Iterable[Float32]) -> Iterator[Any]:
    """The one output, of any type, for each input.  Raises DeployError."""
    session = open_onnx(model)
    name = session.get_inputs()[0].name
    with refusals():
        for batch in batches:
            yield session.run(None, {name: batch})[0]


def open_onnx(model: ir.Model, optimised: bool = False) -> Any:
    """An ONNX Runtime session on the CPU.  Raises DeployError when it refuses the graph.

    Optimisations are off so that what is verified is the graph as written, not a graph that ORT rewrote.  optimised:
    as users of ONNX Runtime have it.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # its errors arrive as exceptions
    with refusals():
        if weight_bytes(model) <= LARGEST:
            data = ir.to_proto(model).SerializeToString()
            return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        with stored(model) as path:
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@contextmanager
def refusals() -> Iterator[None]:
    """What ONNX Runtime raises, as a DeployError."""
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
