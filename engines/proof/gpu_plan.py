"""`deploy.py inspect BUNDLE|MODEL.onnx --gpu-plan`: what NVIDIA's compiler makes of the graph, kernel by kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.backends import get_backend
from engines.backends.tensorrt.backend import TensorRTFamily
from engines.backends.tensorrt.tensorrt_rtx import backend as compiler
from engines.bundle import MODEL, Bundle, is_bundle, open_bundle
from engines.errors import DeployError
from engines.roofline.floor import floors
from engines.roofline.kernels import Kernel, KernelPlan, Operand
from engines.roofline.text import remarks, text
from engines.tiling.tail import TailShape


def inspect_gpu_plan(target: Path, host_code: bool = False) -> tuple[dict[str, Any], str]:
    """The plan and its floors as JSON and as text.  host_code: see BuildConfig.

    Of a bundle whose engine runs on this machine's GPU the engine itself is asked; any other graph is compiled with
    TensorRT-RTX, which needs no GPU.  Raises DeployError where that is missing, or for what holds no graph yet.
    """
    if is_bundle(target):
        plan, what, why = _of_bundle(open_bundle(target), host_code)
    elif target.is_file() and target.suffix.lower() == ".onnx":
        plan, what, why = compiler.kernel_plan(target), f"{target}, as it is, 1 window", ()
    elif target.suffix.lower() == ".onnx":
        raise DeployError(f"--gpu-plan: got {target}, where there is no file; give a bundle or an .onnx")
    else:
        raise DeployError(
            f"--gpu-plan: got {target}, expected a bundle or an .onnx: a checkpoint has no graph yet; deploy.py "
            f"build-engine {target} -o BUNDLE (without a GPU also with --backend tensorrt_rtx), then inspect BUNDLE"
        )
    bounds, said = floors(plan), (*why, *remarks(plan))
    body = {"planned": what, "remarks": list(said), "floors": [floor.to_json() for floor in bounds]}
    return {**body, **plan.to_json()}, text(plan, bounds, what, said)


def _of_bundle(bundle: Bundle, host_code: bool) -> tuple[KernelPlan, str, tuple[str, ...]]:
    """The plan, what it is of, and why it is not the engine's own."""
    bundle.check()
    manifest = bundle.manifest
    plan, what, why = _of_engine(bundle, host_code)
    if manifest.tail is None:
        return plan, what, why
    ours = _tail(manifest.tail, manifest.batch, {tensor.type for kernel in plan.kernels for tensor in kernel.writes})
    return plan.then(ours), what, (*why, "the last kernel, the decoder's tail, is ours, and no compiler's")


def _tail(tail: TailShape, windows: int, types: set[str]) -> Kernel:
    """The kernel that follows the engine, which reads maps in fp16 where that writes any."""
    kind = "fp16" if "fp16" in types else "fp32"
    maps = tuple(Operand(f"tail_{i}", (windows, *size), kind) for i, size in enumerate(tail.outputs))
    weights = tail.channels * (tail.inputs + 1 + tail.padded) + tail.padded
    logits = Operand("logits", (windows, tail.classes, tail.height, tail.width), "fp32")
    return Kernel(
        "tail", kind="edgeseg", reads=maps, constants=(Operand("weights", (weights,), "fp32"),), writes=(logits,),
        macs=windows * tail.macs, computes_in="fp32",
    )  # fmt: skip


def _of_engine(bundle: Bundle, host_code: bool) -> tuple[KernelPlan, str, tuple[str, ...]]:
    """The same, without the tail that an engine may leave to a kernel of ours."""
    manifest = bundle.manifest
    backend = get_backend(manifest.backend)
    windows = f"{manifest.batch} window{'s' if manifest.batch > 1 else ''}"
    model = bundle.folder / MODEL
    if isinstance(backend, TensorRTFamily):
        problem = backend.only_builds() or backend.unavailable()
        problem = problem or backend.refuses(manifest.sdk, manifest.device, bundle.config())
        if problem is None:
            with bundle.engine(backend, host_code=host_code) as (blob, config):
                return backend.engine_plan(blob, config, model), f"the engine of {bundle.folder}, {windows}", ()
        why = f"not from the engine itself: {problem}"
    else:
        why = f"its engine is {manifest.backend}'s: built for a GPU, the same network may have a graph of another form"
    return compiler.kernel_plan(model, manifest.batch), f"{MODEL} of {bundle.folder}, {windows}", (why,)
