"""Networks whose convolutions are not padded label less than their window: the windows that serve them."""

from __future__ import annotations

from dataclasses import replace

from engines.contract import Log
from engines.errors import DeployError
from engines.tiling.placement import NO_MARGIN, Tiling
from pipeline.checkpoints.onnx_source import OnnxSource
from pipeline.checkpoints.sources import Source, SourceOptions, TorchSource, announce_source, load_source
from pipeline.graph.reach.margin import laid


def load_for(model: str, tiling: Tiling, options: SourceOptions, log: Log) -> tuple[Source, Tiling]:
    """As `load_source`, for the windows of `tiling`; and that tiling with the margin that the model leaves unlabelled.

    The same tiling where its logits cover the window; else its stride is the labelled part at most.
    """
    source = load_source(model, (tiling.window_h, tiling.window_w), options)
    announce_source(source, log)
    if source.output is None or not isinstance(source, TorchSource | OnnxSource):
        return source, tiling
    rows, columns = source.output
    ratio = tiling.window_h / rows
    if ratio == tiling.window_w / columns and ratio == int(ratio):
        return source, tiling
    found = laid(source.export()[0].model)
    if found is None:
        return source, tiling
    stride, margin = found
    height, width = tiling.window_h - margin[0] - margin[2], tiling.window_w - margin[1] - margin[3]
    steps = min(tiling.stride_h, height), min(tiling.stride_w, width)
    made = replace(tiling, stride_h=steps[0], stride_w=steps[1], margin=margin)
    log(
        "margin",
        f"convolutions are not padded: of a window of {tiling.window_h}x{tiling.window_w} the {height}x{width} at "
        f"({margin[0]}, {margin[1]}) are labelled; stride {steps[0]}x{steps[1]}, {tiling.padding} padding at borders",
    )
    return replace(source, spec=replace(source.spec, logits_stride=stride)), made


def require_none(tiling: Tiling, what: str) -> None:
    """Raise DeployError where there is a margin: then every label sees all of its field, whatever the stride."""
    if tiling.margin != NO_MARGIN:
        raise DeployError(
            f"{what}: got a network whose convolutions are not padded, expected one that is: without padding every "
            "label sees all that it can at any stride, and the largest is best"
        )
