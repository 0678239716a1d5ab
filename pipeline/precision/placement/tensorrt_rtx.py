"""TensorRT-RTX, by the kernels that its release 1.7 makes; tests/pipeline/precision/test_targets.py reads them.

- A convolution whose weight has a scale for each channel writes its map as FP32, and a second kernel scales it.  With
  one scale for all it writes halves, and takes bias and ReLU along.
- A product takes one scale along.  Its bias is added by a kernel of its own, which also applies a scale a channel:
  where there is a bias the fine scales cost nothing.
- No 8-bit layer takes an activation function other than ReLU along, and no layer writes its output in 8 bits once a
  bias is added; in halves both fuse.  So quantising the input of a layer that stands behind another one's activation
  function takes that function out of the other's kernel.
- An INT8 depthwise convolution is padded to four times its channels.
- LayerNorm, Resize, GELU in a kernel of its own and a fused attention write INT8 as readily as halves; the heads of an
  attention that wrote INT8 are put side by side by one more kernel.
- Products of one tensor are one kernel, in 8 bits where each channel has its scale.
- An attention whose Q, K, V and softmax are FP8 is one kernel, for heads of 32 and of 64 channels; one in INT8 is not,
  and writes its scores.
- The sum of a residual connection fuses with a product in halves alone.
- Projections without a bias whose result an attention reads are one product in halves that writes what the attention
  reads; in INT8 each leaves its scale to a kernel of its own.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.graph.surgery import MOVES, constant, integer, shape
from pipeline.precision.placement.cost import bias_of
from pipeline.precision.placement.rules import Placement


def _fine(node: ir.Node) -> bool:
    return node.op_type != "Conv" and bias_of(node) is not None


def _refused(node: ir.Node, kind: str) -> str:
    weight = constant(node.inputs[1])
    if node.op_type == "Conv" and weight is not None and weight.shape[1] == 1 < integer(node, "group", 1):
        channels = (shape(node.inputs[0]) or (0, weight.shape[0]))[1]
        return f"depthwise over {channels} channels: TensorRT-RTX pads it to four times that"
    if kind == "int8" and node.op_type == "MatMul" and bias_of(node) is None and _feeds_attention(node.outputs[0]):
        return "no bias, and an attention reads it: TensorRT-RTX scales it in a kernel of its own"
    return ""


def _feeds_attention(value: ir.Value) -> bool:
    return any(
        _feeds_attention(reader.outputs[0])
        if reader.op_type in (*MOVES, "Cast", "Mul")
        else reader.op_type == "MatMul" and all(constant(source) is None for source in reader.inputs)
        for reader in value.consumers()
    )


PLACEMENT = Placement(
    "the kernels of TensorRT-RTX 1.7", fine=_fine, refused=_refused,
    epilogues=False, attention=("fp8",), board="RTX 4090",
)  # fmt: skip
