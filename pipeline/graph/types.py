"""The float types that a graph can be lowered to, and what ONNX allows for each operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from pipeline.graph.surgery import is_float


@dataclass(frozen=True)
class Float:
    """largest: the largest finite value.  smallest: the smallest normal one."""

    name: str
    onnx_type: ir.DataType
    dtype: Any
    largest: float
    smallest: float


FLOATS = {
    "fp16": Float("fp16", ir.DataType.FLOAT16, np.float16, largest=65504.0, smallest=2.0**-14),
    "bf16": Float("bf16", ir.DataType.BFLOAT16, ml_dtypes.bfloat16, largest=3.3895313892515355e38, smallest=2.0**-126),
    "fp32": Float("fp32", ir.DataType.FLOAT, np.float32, largest=3.4028234663852886e38, smallest=2.0**-126),
}
# The first opset whose operators can all be typed: Conv takes bfloat16 since 22, Q/DQ a half-precision scale since 19.
OPSETS = {"bf16": 22, "fp16": 13}
OPSET_QDQ = 21
OPSET_QDQ_FP32 = 13  # per-channel DequantizeLinear


def schema_of(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    """None for an operator that this version of onnx does not know."""
    if node.domain:
        return None
    try:
        return onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None


def variables(formal: Sequence[Any], count: int) -> list[str]:
    """The type variable of each of `count` arguments; a variadic last parameter covers the rest."""
    return [formal[min(index, len(formal) - 1)].type_str for index in range(count)]


def allowed(schema: onnx.defs.OpSchema, variable: str, kind: Float) -> bool:
    """Whether a type variable, or a fixed type such as ``tensor(float)``, can be `kind`."""
    wanted = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)", "fp32": "tensor(float)"}[kind.name]
    for constraint in schema.type_constraints:
        if constraint.type_param_str == variable:
            return wanted in constraint.allowed_type_strs
    return variable == wanted


def main_variable_allows(node: ir.Node, opset: int, kind: Float) -> bool:
    """Whether every float output, and a float input bound to the same variable, can be `kind`."""
    schema = schema_of(node, opset)
    if schema is None:
        return False
    outputs = variables(schema.outputs, len(node.outputs))
    floats = [variable for variable, value in zip(outputs, node.outputs, strict=True) if is_float(value)]
    if not all(allowed(schema, variable, kind) for variable in floats):
        return False
    if node.op_type == "Cast":
        return True
    bound = set(variables(schema.inputs, len(node.inputs))) if node.inputs else set()
    return all(variable in bound for variable in floats)
