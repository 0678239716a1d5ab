"""What TensorRT's compiler makes of a graph, kernel by kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.backends.tensorrt.build import build_plan, make_builder
from engines.backends.tensorrt.listing import HEADER, kernels_of, layers_in
from engines.backends.tensorrt.messages import logger_of
from engines.backends.tensorrt.network import ParsedNetwork, outputs
from engines.backends.tensorrt.sdk import Flavour, Sm, name_of, strongly_typed
from engines.contract import BuildConfig, TensorRTOptions
from engines.errors import DeployError
from engines.roofline.kernels import KernelPlan

PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
# What may stand between an attention's softmax and the product with its values.
_BETWEEN = ("CAST", "IDENTITY", "QUANTIZE", "DEQUANTIZE", "SHUFFLE")


@dataclass(frozen=True)
class _Graph:
    """What the graph holds, whatever is made of it.  products: names."""

    window: tuple[int, int]
    products: tuple[str, ...]
    attentions: int


def compiled_plan(sdk: Any, flavour: Flavour, model: Path, batch: int, least: Sm) -> KernelPlan:
    """Compile the ONNX file `model` for `batch` windows, and throw the engine away.  Raises DeployError.

    least: compute capability.  Of a package that builds ahead of time: no GPU is needed, and none is asked.
    """
    said: list[str] = []

    def keep(text: str) -> None:
        if text.startswith(HEADER):
            said.append(text)

    title = _title(sdk, flavour)
    graph = _graph(sdk, title, model, batch)
    targets = flavour.targets(sdk, None, TensorRTOptions(), least)
    build_plan(
        sdk,
        flavour,
        model=model,
        config=BuildConfig(batch=batch),
        room=None,
        targets=targets,
        cache=None,
        listener=keep,
    )
    if len(said) != 1:
        raise DeployError(f"plan: {title} listed {len(said)} engines, expected the layers of one; report this")
    return _plan(f"{title} on a CPU", True, graph, layers_in(said[0]))


def engine_plan(sdk: Any, flavour: Flavour, model: Path, batch: int, layers: Iterable[Mapping[str, Any]]) -> KernelPlan:
    """Of an engine for `batch` windows, built from `model`, whose inspector told `layers`.  Raises DeployError."""
    title = _title(sdk, flavour)
    return _plan(f"{title}, the engine itself", False, _graph(sdk, title, model, batch), layers)


def _title(sdk: Any, flavour: Flavour) -> str:
    return f"{flavour.title} {sdk.__version__}"


def _plan(source: str, proxy: bool, graph: _Graph, layers: Iterable[Mapping[str, Any]]) -> KernelPlan:
    kernels = kernels_of(layers)
    named = {name for kernel in kernels if kernel.macs for name in kernel.layers}
    return KernelPlan(
        source, proxy, window=graph.window, kernels=kernels, attentions=graph.attentions,
        unaccounted=tuple(name for name in graph.products if name not in named),
    )  # fmt: skip


def _graph(sdk: Any, title: str, model: Path, batch: int) -> _Graph:
    logger = logger_of(sdk)
    builder = make_builder(sdk, title, logger)
    parsed = ParsedNetwork(sdk, title, builder, logger, model=model, typed=strongly_typed(sdk), batch=batch)
    height, width = tuple(parsed.network.get_input(0).shape)[-2:]
    takers = defaultdict(list)
    layers = list(parsed.layers)
    for layer in layers:
        for index in range(layer.num_inputs):
            if layer.get_input(index) is not None:
                takers[layer.get_input(index).name].append(layer)
    products = tuple(str(layer.name) for layer in layers if name_of(layer.type) in PRODUCTS)
    softmaxes = (layer for layer in layers if name_of(layer.type) == "SOFTMAX")
    return _Graph((int(height), int(width)), products, sum(_feeds_product(layer, takers) for layer in softmaxes))


def _feeds_product(layer: Any, takers: Mapping[str, list[Any]]) -> bool:
    after = [taker for tensor in outputs(layer) for taker in takers.get(tensor.name, ())]
    return any(
        name_of(each.type) == "MATRIX_MULTIPLY" or (name_of(each.type) in _BETWEEN and _feeds_product(each, takers))
        for each in after
    )
