"""torch.nn.Module -> OnnxGraph, at one static window shape, and what simplifies any graph."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxsim
import torch
from torch import nn

from engines.errors import DeployError
from pipeline.graph.onnx_graph import OnnxGraph, Step, from_model
from pipeline.graph.proto import LARGEST, settle, with_weights, without_weights

OPSET = 18  # the first with today's Resize; LayerNormalization has been one node since 17

# Each turns MatMul+Add into Reshape+Gemm+Reshape or merges projections: no gain in any engine, and later passes
# (precision lowering, attention fusion in TensorRT and OpenVINO) match the plain form.
_SKIPPED_OPTIMIZERS = [
    "fuse_matmul_add_bias_into_gemm",
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_qkv",
    "fuse_attention",
]  # the last makes an operator that ONNX Runtime alone has


def trace(module: nn.Module, window: tuple[int, int], channels: int = 3) -> torch.export.ExportedProgram:
    """Capture `module` at (1, channels, *window).  Raises DeployError naming what torch.export could not capture."""
    example = torch.zeros(1, channels, *window)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(module, (example,))
    except (RuntimeError, ValueError) as error:  # the base classes of everything that torch.export raises
        raise DeployError(f"export: torch.export cannot capture the model: {_first_line(error)}") from error


def export(program: torch.export.ExportedProgram) -> OnnxGraph:
    """Translate a captured program to ONNX: input ``image``, output ``logits``, LayerNormalization as one node."""
    model = translate(program, ["logits"])
    return from_model(model, (Step(f"torch.onnx opset {OPSET}", len(model.graph)),))


def translate(program: torch.export.ExportedProgram, outputs: list[str]) -> ir.Model:
    """The same of a program of several outputs, which get those names."""
    try:
        with _quiet():
            result = torch.onnx.export(
                program, (), opset_version=OPSET, input_names=["image"], output_names=outputs, dynamo=True,
                verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise DeployError(f"export: torch.onnx cannot translate the model: {_first_line(error)}") from error
    if result is None:
        raise DeployError("export: torch.onnx returned nothing; expected an ONNX program")
    # The exporter's stack traces: megabytes of paths of the machine that built the bundle.
    passes.ClearMetadataAndDocStringPass()(result.model)
    return result.model


def simplify(graph: OnnxGraph) -> OnnxGraph:
    """Constant folding, BatchNorm folding and dead-node removal by onnxsim; the interface stays."""
    model, left_out = fold(graph.model)
    settle(model)
    return graph.then(model, f"onnxsim {onnxsim.__version__}", declined=left_out)


def fold(model: ir.Model) -> tuple[ir.Model, str]:
    """The model after onnxsim, and which weights it did not see: it takes a graph as one ModelProto."""
    proto, weights = without_weights(model, _limit(model))
    try:
        simplified, ok = onnxsim.simplify(proto, skipped_optimizers=_SKIPPED_OPTIMIZERS)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise DeployError(f"onnxsim: cannot simplify the graph: {_first_line(error)}") from error
    if not ok:
        raise DeployError("onnxsim: its own check of the simplified graph failed; the graph may be invalid")
    gigabytes = sum(tensor.nbytes for tensor in weights.values()) / 1e9
    left_out = f"{len(weights)} weight(s) of {gigabytes:.1f} GB in all, more than onnxsim takes" if weights else ""
    return with_weights(simplified, weights), left_out


def _limit(model: ir.Model) -> int:
    """Bytes of the largest weight that stays, so that all that do fit into one ModelProto."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    sizes = sorted(tensor.nbytes for tensor in tensors if tensor is not None)
    total, limit = sum(sizes), LARGEST
    while total > LARGEST:
        limit = sizes[-1] - 1  # all of one size go together
        total -= sizes.pop()
    return limit


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
