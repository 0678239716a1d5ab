"""What it would save to give an engine its windows in another format than planes, by TensorRT-RTX's own listing.

    python -m benchmarks.input_formats [demo b2 ...]

In FP16, in the forms for GPUs, the window given as halves.  For each format that the compiler takes: kernels, bytes
that they move, and what gather would write; then the first kernel.  The last line is of a network whose first layer has
a fourth channel of zeros.  No GPU is needed, and none has run any of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.gpu_plans import SIDES, exact, silent
from engines.backends import get_backend
from engines.backends.tensorrt.backend import TensorRTFamily
from engines.backends.tensorrt.listing import HEADER, kernels_of, layers_in
from engines.backends.tensorrt.messages import errors_of, listening, logger_of
from engines.backends.tensorrt.network import ParsedNetwork
from engines.backends.tensorrt.sdk import strongly_typed
from engines.roofline.kernels import Kernel
from pipeline.graph.proto import stored
from pipeline.precision.forms import PLANNER, ByPlan, taken, typed
from pipeline.precision.interface import interface_for

# Values a pixel of an image of three channels takes, by the formats of TensorRT's "Data Format Descriptions".
FORMATS = {"LINEAR": 3, "HWC": 3, "CHW2": 4, "CHW4": 4, "HWC8": 8, "HWC16": 16, "CHW16": 16, "CHW32": 32}
WIDENED = "HWC"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["demo", "b2", "pup"], metavar="MODEL", help=", ".join(SIDES))
    for name in parser.parse_args().models:
        graph = typed(taken(exact(name), ByPlan("fp16", silent), silent)[-1], "fp16")
        backend = get_backend(PLANNER)
        assert isinstance(backend, TensorRTFamily)
        model = interface_for(backend, graph.model)
        with stored(model) as path:
            for kind, values in FORMATS.items():
                print(f"{name} {kind:9}{_line(_kernels(backend.sdk(), path, kind), values, SIDES[name])}", flush=True)
        with stored(_widened(model)) as path:
            found = _kernels(backend.sdk(), path, WIDENED)
            print(f"{name} {f'{WIDENED} of 4':9}{_line(found, 4, SIDES[name])}", flush=True)


def _widened(model: ir.Model) -> ir.Model:
    """With a fourth channel of the image, which the first layer multiplies by zero."""
    model = model.clone()
    (image,) = model.graph.inputs
    ((layer, _),) = image.uses()
    weights = layer.inputs[1]
    assert layer.op_type == "Conv"
    assert weights is not None
    assert weights.const_value is not None
    wider = np.pad(weights.const_value.numpy(), ((0, 0), (0, 1), (0, 0), (0, 0)))
    weights.const_value, weights.shape = ir.tensor(wider, name=weights.name), ir.Shape(wider.shape)
    image.shape = ir.Shape([1, 4, *image.shape[2:]]) if image.shape is not None else None
    return model


def _line(found: tuple[Kernel, ...] | str, values: int, side: int) -> str:
    if isinstance(found, str):
        return f"refused: {found}"
    moved, written = sum(kernel.bytes for kernel in found) / 1e6, values * 2 * side**2 / 1e6
    first = ", ".join("x".join(map(str, each.shape)) for each in (*found[0].reads, *found[0].writes))
    return f"{len(found):5} kernels{moved:8.1f} MB, gather writes {written:5.1f}, sum {moved + written:7.1f}; {first}"


def _kernels(sdk: Any, path: Path, kind: str) -> tuple[Kernel, ...] | str:
    """Of the engine whose input has this format, or why it is refused."""
    logger, said = logger_of(sdk), list[str]()
    logger.messages.clear()
    builder = sdk.Builder(logger)
    parsed = ParsedNetwork(
        sdk, title=PLANNER, builder=builder, logger=logger, model=path, typed=strongly_typed(sdk), batch=1
    )
    image = parsed.network.get_input(0)
    image.allowed_formats = 1 << int(getattr(sdk.TensorFormat, kind))
    settings = builder.create_builder_config()
    settings.profiling_verbosity = sdk.ProfilingVerbosity.DETAILED
    with listening(logger, said.append):
        plan = builder.build_serialized_network(parsed.network, settings)
    if plan is None:
        return (errors_of(logger) or ["it gave no reason"])[-1][:100]
    (listing,) = (text for text in said if text.startswith(HEADER))
    return kernels_of(layers_in(listing))


if __name__ == "__main__":
    main()
