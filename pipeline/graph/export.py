"""torch.nn.Module or .onnx file -> OnnxGraph, at one static window shape."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import cast

import onnx
import onnxsim
import torch
from google.protobuf.message import DecodeError
from torch import nn

from engines.errors import DeployError
from pipeline.graph.onnx_graph import OnnxGraph, Step, from_model

OPSET = 18  # the first with today's Resize; LayerNormalization has been one node since 17

# Each turns MatMul+Add into Reshape+Gemm+Reshape or merges projections: no gain in any engine, and later passes
# (precision lowering, attention fusion in TensorRT and OpenVINO) match the plain form.
_SKIPPED_OPTIMIZERS = ["fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched", "fuse_qkv"]


def trace(module: nn.Module, window: tuple[int, int]) -> torch.export.ExportedProgram:
    """Capture `module` at (1, 3, *window).  Raises DeployError naming what torch.export could not capture."""
    example = torch.zeros(1, 3, *window)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, (example,))
    except (RuntimeError, ValueError) as error:  # the base classes of everything that torch.export raises
        raise DeployError(f"export: torch.export cannot capture the model: {_first_line(error)}") from error


def export(program: torch.export.ExportedProgram) -> OnnxGraph:
    """Translate a captured program to ONNX: input ``image``, output ``logits``, LayerNormalization as one node."""
    try:
        with _quiet():
            result = torch.onnx.export(
                program, (), opset_version=OPSET, input_names=["image"], output_names=["logits"], dynamo=True,
                verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise DeployError(f"export: torch.onnx cannot translate the model: {_first_line(error)}") from error
    if result is None:
        raise DeployError("export: torch.onnx returned nothing; expected an ONNX program")
    model = result.model_proto
    return from_model(_strip(model), (Step(f"torch.onnx opset {OPSET}", len(model.graph.node)),))


def import_onnx(path: Path, window: tuple[int, int]) -> OnnxGraph:
    """Read a user's .onnx and fix its input at (1, 3, *window).  Sizes that the file fixes must agree with that."""
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise DeployError(f"model {path}: no such file (or its external data is missing)") from error
    except (DecodeError, OSError, onnx.checker.ValidationError, ValueError) as error:
        raise DeployError(f"model {path}: not a readable ONNX file ({_first_line(error)})") from error
    if not model.graph.node:
        raise DeployError(f"model {path}: not an ONNX graph, or an empty one; expected a segmentation network")
    _fix_input(model, window, path)
    try:
        fixed = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise DeployError(f"model {path}: shapes do not fit together at {window}: {_first_line(error)}") from error
    # Shape subgraphs of dynamic exports only become constants by folding, so the import ends with it.
    folded = _simplify(fixed)
    return from_model(folded, (Step("imported .onnx", len(folded.graph.node)),))


def simplify(graph: OnnxGraph) -> OnnxGraph:
    """Constant folding, BatchNorm folding and dead-node removal by onnxsim; the interface stays."""
    return graph.then(_simplify(graph.model), f"onnxsim {onnxsim.__version__}")


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        simplified, ok = onnxsim.simplify(model, skipped_optimizers=_SKIPPED_OPTIMIZERS)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise DeployError(f"onnxsim: cannot simplify the graph: {_first_line(error)}") from error
    if not ok:
        raise DeployError("onnxsim: its own check of the simplified graph failed; the graph may be invalid")
    return cast(onnx.ModelProto, simplified)


def _fix_input(model: onnx.ModelProto, window: tuple[int, int], path: Path) -> None:
    constants = {init.name for init in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise DeployError(f"model {path}: got inputs {[v.name for v in inputs]}, expected one image")
    dims = inputs[0].type.tensor_type.shape.dim
    wanted = (1, 3, *window)
    if len(dims) != 4:
        raise DeployError(f"model {path}: got an input of rank {len(dims)}, expected (N, 3, H, W)")
    for axis, (dim, size) in enumerate(zip(dims, wanted, strict=True)):
        if dim.HasField("dim_value") and dim.dim_value != size:
            got = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
            advice = "give the matching --tile" if axis > 1 else "export it for one RGB image, channels first"
            raise DeployError(f"model {path}: input is {got}, expected {list(wanted)}; {advice}")
        dim.dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")  # symbolic or stale; inference fills it in


def _strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's per-node stack traces: megabytes of paths of the machine that built the bundle."""
    del model.metadata_props[:]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warnings and logs: what matters in them arrives as an exception, with its own line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()  # torch.export prints the whole graph before it raises
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # torch.onnx says what is wrong only in the innermost error
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
