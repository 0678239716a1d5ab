"""What a build starts from: a PyTorch module with its weights, or a ready .onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from engines.contract import Float32, Log
from engines.errors import DeployError
from engines.images.palettes import DATASETS, palette_for
from engines.spec import ModelSpec, said_threshold
from pipeline.checkpoints import load_model
from pipeline.checkpoints.onnx_source import load_onnx
from pipeline.graph.endings import Ending
from pipeline.graph.export import export, trace
from pipeline.graph.given import is_onnx
from pipeline.graph.onnx_graph import OnnxGraph, Step


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about the model; None keeps what the checkpoint says (or ImageNet's mean and std).

    arguments: that a factory is called with.  classes: a data set's name or a text file with one class a line.
    mean, std: on the 0..255 scale.
    threshold: of a network with one channel, see `ModelSpec`.  output_name: of an .onnx with several.
    bands, scale: see `engines.spec.Pixels`.
    """

    weights: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classes: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bgr: bool = False
    threshold: float | None = None
    output_name: str | None = None
    bands: tuple[int, ...] | None = None
    scale: tuple[float, float] | None = None


class Source(Protocol):
    """A model to build from; `reference` says in words what `logits` computes with.

    remarks: what a user should know of how the model was read.
    quantised: how it is INT8 already, "" where its activations are floats.
    parameters: numbers that were learned; of an .onnx all that its graph holds as floats.
    output: height and width of the logits of a window; None of those that are known to cover it.
    """

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def reference(self) -> str: ...

    @property
    def remarks(self) -> tuple[str, ...]: ...

    @property
    def quantised(self) -> str: ...

    @property
    def parameters(self) -> int: ...

    @property
    def output(self) -> tuple[int, int] | None: ...

    def logits(self, windows: Sequence[Float32]) -> Float32:
        """The model's own logits (M, K, h, w) for M inputs (1, 3, H, W): what every later step must reproduce."""

    def export(self) -> tuple[OnnxGraph, torch.export.ExportedProgram | None]:
        """The model as ONNX, and the program that it was translated from where there is a module."""


@dataclass(frozen=True)
class TorchSource:
    module: nn.Module
    spec: ModelSpec
    window: tuple[int, int]
    reference: str = "the checkpoint in PyTorch"
    remarks: tuple[str, ...] = ()
    quantised: str = ""
    output: tuple[int, int] | None = None

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    def logits(self, windows: Sequence[Float32]) -> Float32:
        """Raises DeployError where the module cannot take its window, as SegFormer one smaller than its strides."""
        try:
            with torch.inference_mode():
                return np.concatenate([self.module(torch.from_numpy(window)).numpy() for window in windows])
        except RuntimeError as error:
            height, width = self.window
            raise DeployError(
                f"model: fails on a {height}x{width} window: {str(error).strip().splitlines()[0]}; give another --tile"
            ) from error

    def export(self) -> tuple[OnnxGraph, torch.export.ExportedProgram | None]:
        program = trace(self.module, self.window, len(self.spec.mean))
        graph = export(program)
        steps = [Step(remark, len(graph.model.graph), places=1) for remark in self.remarks]
        return replace(graph, history=(*steps, *graph.history)), program


def load_source(model: str, window: tuple[int, int], options: SourceOptions) -> Source:
    """Read `model` as `deploy.py build-engine` accepts it.  Raises DeployError."""
    if is_onnx(model):
        if options.weights is not None:
            raise DeployError(f"--weights {options.weights}: an .onnx carries its own weights; leave the option out")
        read = load_onnx(Path(model), window, options.output_name)
        said = options.mean is not None or options.std is not None
        if read.given.original.face.integer and said:
            raise DeployError(
                f"--mean, --std: {model} takes pixels as bytes and normalises them; leave the options out"
            )
        return replace(read, spec=_override(read.spec, options), normalised=not said)
    if options.output_name is not None:
        raise DeployError(f"--output-name {options.output_name}: got {model}, expected an .onnx; leave the option out")
    loaded = load_model(
        model, weights=options.weights, window=window, named=options.classes is not None, arguments=options.arguments
    )
    remarks = (*loaded.remarks, *_remarks(loaded.ending))
    return TorchSource(
        loaded.module, _override(loaded.spec, options), window, remarks=remarks, output=loaded.output
    )  # fmt: skip


def _remarks(ending: Ending | None) -> tuple[str, ...]:
    return () if ending is None else (f"ending: {ending.what}",)


def announce_source(source: Source, log: Log) -> None:
    """Say what was loaded."""
    for text in (summary(source.spec), *source.remarks):
        log("load", text)


def summary(spec: ModelSpec) -> str:
    count = f"{len(spec.classes)} classes" if spec.threshold is None else f"one channel, {said_threshold(spec)}"
    return (
        f"{spec.architecture} {spec.variant} from {spec.source}, {count}, logits at 1/{spec.logits_stride}, "
        f"mean {_triple(spec.mean)} std {_triple(spec.std)} {spec.channel_order}, sha256 {spec.source_sha256[:12]}"
    )


def _override(spec: ModelSpec, options: SourceOptions) -> ModelSpec:
    if options.classes is not None:
        names, palette = _classes(options.classes)
        if len(names) not in {spec.channels, len(spec.classes)}:
            wanted = "one for each output channel of the model" if spec.channels > 1 else "or 1 beside the background"
            raise DeployError(
                f"--classes {options.classes}: got {len(names)} names, expected {len(spec.classes)}, {wanted}"
            )
        spec = replace(spec, classes=names, palette=palette)
    spec = spec.at_threshold(options.threshold)
    _check_scale(options)
    for name, given in (("--mean", options.mean), ("--std", options.std), ("--bands", options.bands)):
        if given is not None and len(given) != len(spec.mean):
            raise DeployError(
                f"{name} {','.join(f'{value:g}' for value in given)}: got {len(given)}, expected {len(spec.mean)}, one "
                "for each channel that the network takes"
            )
    return replace(
        spec, mean=options.mean or spec.mean, std=options.std or spec.std, bands=options.bands or spec.bands,
        scale=options.scale or spec.scale, channel_order="BGR" if options.bgr else spec.channel_order,
    )  # fmt: skip


def _check_scale(options: SourceOptions) -> None:
    """Raises DeployError for PyTorch's habit, a mean and std of pixels of 0..1.  A std of 1 is Caffe's, on 0..255."""
    if options.std is not None and min(options.std) <= 0:
        raise DeployError(f"--std {_triple(options.std)}: got a value of zero or less, expected positive ones")
    for name, given, seen in (
        ("--mean", options.mean, max(options.mean or (0.0,))), ("--std", options.std, min(options.std or (0.0,))),
    ):  # fmt: skip
        if given is not None and 0 < seen < 1:
            as_given, scaled = (",".join(f"{factor * value:g}" for value in given) for factor in (1, 255))
            raise DeployError(
                f"{name} {as_given}: got values for pixels of 0..1, expected them for 0..255; give {name} {scaled}"
            )


def _classes(name: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    if name in DATASETS:
        return DATASETS[name].names, DATASETS[name].palette
    try:
        text = Path(name).read_text(encoding="utf-8-sig")  # editors on Windows begin files with a mark
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(DATASETS)
        raise DeployError(f"--classes {name}: neither a text file nor one of {known}") from error
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise DeployError(f"--classes {name}: got {', '.join(twice[:3])} more than once, expected different names")
    return names, palette_for(names)


def _triple(values: tuple[float, ...]) -> str:
    return "/".join(f"{v:g}" for v in values)
