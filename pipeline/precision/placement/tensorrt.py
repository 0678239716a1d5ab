"""TensorRT, by NVIDIA's documentation; nothing of it has been timed by this project.

"Working with Quantized Types" in TensorRT's guide, and Model-Optimizer's INT8 mode: weights have one scale an output
channel; kernels for INT8 convolutions and products take the scale, the bias and the activation function along and can
write INT8.  Attention in FP8 is Model-Optimizer's pattern for Ada, Hopper and Blackwell.
"""

from __future__ import annotations

from pipeline.precision.placement.rules import Placement, always, nothing

PLACEMENT = Placement(
    "NVIDIA's documentation of TensorRT, not measured", fine=always, refused=nothing, epilogues=True,
    attention=("fp8",), board="AGX Orin 64GB",
)  # fmt: skip
