"""A network that comes quantised: there is nothing to lower, and what it was quantised to decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from engines.contract import Backend
from engines.errors import DeployError
from pipeline.graph.surgery import constant
from pipeline.request import BuildRequest


def as_it_is(request: BuildRequest, quantised: str, model: ir.Model, backend: Backend) -> BuildRequest:
    """`request` for a graph that is INT8 already: neither rewritten nor lowered, and gated as INT8.

    Raises DeployError on what cannot be asked of such a graph, or of `backend` with it.
    """
    refuse(quantised, request.precision, ranges=request.ranges is not None or request.photographs is not None)
    refused = backend.supports("int8")
    if refused is None and not backend.zero_points and not _symmetric(model):
        refused = "takes INT8 activations of zero point 0 alone; quantise the network symmetrically"
    if refused is not None:
        raise DeployError(f"backend {backend.name}: {refused}; the network is int8 already")
    return replace(
        request, precision="int8", rewrites=False, time_rewrites=False, lowering=replace(request.lowering, kept=True)
    )


def refuse(quantised: str, precision: str, ranges: bool = False) -> None:
    """Raises DeployError where a network that is `quantised` is asked for another precision, or to be calibrated."""
    if quantised and precision not in ("fp32", "int8"):  # fp32 is what is asked for when nothing is said
        raise DeployError(
            f"--precision {precision}: the network is int8 already ({quantised}), expected floats; leave the option "
            "out, or give the network that it was quantised from"
        )
    if quantised and ranges:
        raise DeployError(
            f"--calib: the network is int8 already ({quantised}) and has its own ranges; leave the option out, or give "
            "the network that it was quantised from"
        )


def _symmetric(model: ir.Model) -> bool:
    """Whether every zero point is 0 of int8."""
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if zero is None or zero.dtype == np.uint8 or (zero != 0).any():
                return False
    return True
