"""What a row's graph would take at least on named GPUs, where NVIDIA's compiler is at hand to say its kernels."""

from __future__ import annotations

from pathlib import Path

from engines.backends.tensorrt.tensorrt_rtx import backend as compiler
from engines.errors import DeployError
from engines.roofline.floor import floors

SHOWN = "AGX Orin 64GB"  # the board of the table's column; compare.json has them all
EXPLAINED = (
    f"a lower bound on one window on an {SHOWN}, never a latency: the roofline of the kernels that TensorRT-RTX makes "
    "of the graph, a proxy of TensorRT there; inspect BUNDLE --gpu-plan says more"
)


def gpu_floors(model: Path) -> tuple[dict[str, float], str]:
    """Milliseconds by board for one window through the ONNX file `model`, and how they were found.

    Without TensorRT-RTX, or where it refuses the graph, none, and the reason.
    """
    reason = compiler.cannot_plan()
    if reason is not None:
        return {}, reason
    try:
        plan = compiler.kernel_plan(model)
    except DeployError as error:
        return {}, str(error)
    found = {floor.board: floor.roofline for floor in floors(plan) if floor.roofline is not None}
    said = f"{len(plan.kernels)} kernels move {plan.bytes / 1e6:.1f} MB, {plan.source}"
    return found, said
