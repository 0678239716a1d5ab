"""`deploy.py inspect MODEL`: what a checkpoint is and what it would become, without building it."""

from __future__ import annotations

from typing import Any

from pipeline.checkpoints.onnx_source import OnnxSource
from pipeline.checkpoints.sources import SourceOptions, TorchSource, load_source, summary


def inspect_model(model: str, window: tuple[int, int], options: SourceOptions) -> tuple[dict[str, Any], str]:
    """The model's spec and size as JSON and as text.  Raises DeployError as `build-engine` would."""
    source = load_source(model, window, options)
    result: dict[str, Any] = {"spec": source.spec.to_json(), "window": list(window), "remarks": list(source.remarks)}
    if isinstance(source, TorchSource):
        result["parameters"] = source.parameters
    elif isinstance(source, OnnxSource):
        result["nodes"] = len(source.graph.model.graph)
        result["output_shape"] = list(source.graph.output_shape)
    size = f"{result['parameters'] / 1e6:.2f} M parameters" if "parameters" in result else f"{result['nodes']} nodes"
    said = "\n".join((summary(source.spec), *source.remarks))
    return result, f"{said}\n{size}\nclasses: {', '.join(source.spec.classes)}"
