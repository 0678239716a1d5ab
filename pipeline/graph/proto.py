"""Where a graph leaves onnx_ir: for onnx's own C++, for files, and for engines.  No ModelProto here exceeds 2 GB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from engines.errors import DeployError
from engines.guard.ledger import temporary_folder
from pipeline.graph.surgery import exact, forget_shapes, integer, opset, shape

LARGEST = onnx.checker.MAXIMUM_PROTOBUF - (64 << 20)  # bytes of weights in one ModelProto; the rest is for the nodes
LAST_WITHOUT_MODE = 10  # opset, whose Resize does not say how pixels are placed
FIRST_WITH_ONE_AXIS = 13  # opset, whose Softmax and its kin work along one axis
SMALL = 4096  # bytes: larger constants are weights, on whose values no shape depends

Weights = Mapping[str, ir.TensorProtocol]


def weight_bytes(model: ir.Model) -> int:
    return sum(tensor.nbytes for value in model.graph.initializers.values() if (tensor := value.const_value))


def without_weights(model: ir.Model, limit: int = SMALL) -> tuple[onnx.ModelProto, Weights]:
    """A ModelProto in which the initializers of more than `limit` bytes are inputs, and their tensors by name."""
    copy = model.clone()
    graph, taken = copy.graph, {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > limit:
            taken[name] = value.const_value
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
        else:
            value.type = value.shape = None  # its tensor says both
    return ir.to_proto(copy), taken


def with_weights(proto: onnx.ModelProto, weights: Weights) -> ir.Model:
    """What `without_weights` took apart, together again."""
    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        if value.uses():
            value.const_value = weights[str(value.name)]
            model.graph.register_initializer(value)
    return model


def infer(model: ir.Model, data_prop: bool = True) -> None:
    """Give the output of each node its static type and shape.  Raises onnx.shape_inference.InferenceError.

    data_prop: also follow the values of shapes that are computed.
    """
    _infer(model, without_weights(model)[0], data_prop)


def _infer(model: ir.Model, proto: onnx.ModelProto, data_prop: bool) -> None:
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=data_prop).graph
    found = {value.name: value for value in (*graph.value_info, *graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in found:
                inferred = ir.from_proto(found[value.name])
                value.type, value.shape = inferred.type, inferred.shape


def settle(model: ir.Model) -> None:
    """Check `model`, and infer the types and shapes of its values.  Raises DeployError where it is invalid."""
    proto, _ = without_weights(model)
    with _validity():
        onnx.checker.check_model(proto)
        _infer(model, proto, data_prop=True)


def check(model: ir.Model) -> None:
    """Raises DeployError where ONNX's checker, or its inference of types and shapes, finds the graph invalid."""
    with _validity():
        onnx.checker.check_model(without_weights(model)[0], full_check=True)


@contextmanager
def _validity() -> Iterator[None]:
    try:
        yield
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DeployError(f"onnx: the graph is invalid: {' '.join(str(error).split())[:300]}") from error


def at_opset(model: ir.Model, version: int) -> ir.Model:
    """A copy converted to that opset, with the same tensor names.  Raises DeployError."""
    before = opset(model)
    proto, weights = without_weights(model)
    _output_everything(proto)
    try:
        converted = with_weights(onnx.version_converter.convert_version(proto, version), weights)
        while len(converted.graph.outputs) > len(model.graph.outputs):
            converted.graph.outputs.pop()  # deleting a slice leaves values that call themselves outputs
        if before <= LAST_WITHOUT_MODE:
            _say_asymmetric(converted)
        if before < FIRST_WITH_ONE_AXIS <= version:
            _say_axis(converted)
        infer(converted)
    except (onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise DeployError(
            f"precision: cannot bring the graph to opset {version}: {error}; export it at {version}"
        ) from error
    return converted


def _output_everything(proto: onnx.ModelProto) -> None:
    """The converter gives what it replaces another name, by which no range knows it, but keeps those of outputs."""
    graph = proto.graph
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    graph.output.extend(value for value in graph.value_info if value.name in made)


def _say_asymmetric(model: ir.Model) -> None:
    """Until opset 10 Resize placed pixels in one way; the default is another since, and the converter says nothing.

    Nearest takes the pixel before when it enlarges, the one after when it reduces (ONNX Runtime's `Simple`).
    """
    for node in model.graph:
        if node.op_type == "Resize":
            scales = exact(node.inputs[2])
            reduces = scales is not None and bool((scales < 1).any())
            for name, value in (
                ("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "ceil" if reduces else "floor"),
            ):  # fmt: skip
                node.attributes[name] = ir.AttrString(name, value)


def _say_axis(model: ir.Model) -> None:
    """Until opset 12 Hardmax took all axes from one on together, by default from the second; since then one, the last.

    The converter knows that of Softmax and LogSoftmax only.  Raises DeployError where no single axis is meant.
    """
    for node in model.graph:
        if node.op_type == "Hardmax":
            axis, sizes = integer(node, "axis", 1), shape(node.inputs[0]) or ()
            if not sizes or any(size != 1 for size in sizes[axis % len(sizes) + 1 :]):
                raise DeployError(
                    f"precision: got a Hardmax over all axes from {axis} of {list(sizes)} at opset 12 or before, "
                    f"expected one over one axis; export the model at {FIRST_WITH_ONE_AXIS}"
                )
            node.attributes["axis"] = ir.AttrInt64("axis", axis)


def load(path: Path) -> ir.Model:
    """Read a file, and the weights beside it if they are.  Raises what onnx and onnx_ir raise."""
    model = ir.load(path)
    passes.RemoveInitializersFromInputsPass()(model)  # defaults, as before IR version 4: nobody feeds them
    return ir.external_data.load_to_model(model)


def save(model: ir.Model, path: Path) -> None:
    """Write one file or, where a ModelProto cannot hold the weights, `path` and beside it ``<name>.data``.

    Shapes inside are left to the reader, who may set another batch.
    """
    copy = model.clone()
    forget_shapes(copy)
    ir.save(copy, path, external_data=f"{path.name}.data" if weight_bytes(model) > LARGEST else None)


@contextmanager
def stored(model: ir.Model) -> Iterator[Path]:
    """A file of `model` for the time being."""
    with temporary_folder() as folder:
        path = folder / "graph.onnx"
        save(model, path)
        yield path
