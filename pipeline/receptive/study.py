"""`deploy.py receptive-field`: what a model's units see of the image, measured on photographs and told by its graph."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from calib.data.scenes import render_bands
from calib.ranges.split import photographs
from calib.ranges.windows import draw_from
from engines.bundle import writing
from engines.contract import Float32, Log, UInt8
from engines.errors import DeployError
from engines.images.read import MAX_PIXELS, read_image
from engines.images.resize import sized
from engines.machine.limits import cores
from engines.spec import ModelSpec
from engines.tiling import core
from engines.tiling.placement import Tiling
from pipeline.checkpoints.margins import load_for, require_none
from pipeline.checkpoints.onnx_source import OnnxSource
from pipeline.checkpoints.sources import SourceOptions, TorchSource, summary
from pipeline.figures.canvas import require_matplotlib
from pipeline.graph.reach.theory import Reach, reaches
from pipeline.receptive.field import SHARES, Field
from pipeline.receptive.figure import picture
from pipeline.receptive.gradient import measure
from pipeline.receptive.graph import tapped_graph
from pipeline.receptive.perturbation import perturbed
from pipeline.receptive.units import OUTPUT, Tap, taps_of
from pipeline.receptive.windows import stride_shares

JSON, PICTURE = "receptive-field.json", "receptive-field.png"


@dataclass(frozen=True)
class FieldRequest:
    """What was asked for.  data: photographs; None renders scenes.  windows: at most so many of them are averaged."""

    model: str
    tiling: Tiling
    data: Path | None = None
    windows: int = 8
    seed: int = 0
    threads: int = 0
    options: SourceOptions = field(default_factory=SourceOptions)
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Study:
    """fields, reaches: one of each tap, the decoder's output last.  seen: what was averaged over, for the report."""

    model: str
    sha256: str
    window: tuple[int, int]
    seen: str
    fields: tuple[Field, ...]
    reaches: tuple[Reach, ...]

    @property
    def output(self) -> Field:
        return self.fields[-1]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {**one.to_json(), "theory": reach.to_json()} for one, reach in zip(self.fields, self.reaches, strict=True)
        ]
        strides = [each.to_json() for each in stride_shares(self.output)]
        return {
            "model": self.model, "source_sha256": self.sha256, "window": list(self.window), "images": self.seen,
            "energy": "square of the mean |gradient|", "fields": rows, "strides": strides,
            "versions": {"torch": torch.__version__},
        }  # fmt: skip

    def __str__(self) -> str:
        shares = "".join(f"{f'{100 * share:g} %':>8}" for share in SHARES)
        lines = [f"{'':46}{'stride':>8}{shares}  theory", ""]
        for one, reach in zip(self.fields, self.reaches, strict=True):
            radii = "".join(f"{radius:8.1f}" for radius in one.radii())
            lines.append(f"{one.name[-45:]:46}{one.stride[0]:8g}{radii}  {reach}")
        lines[1] = "radius in pixels that holds the share of the energy"
        return "\n".join(lines)


def receptive_field(request: FieldRequest, output: Path, log: Log) -> Study:
    """Measure, and write `output`/receptive-field.json and .png, both or neither.  Raises DeployError."""
    require_matplotlib()
    with writing(output, _check_folder) as folder:
        study = measured(request, log)
        title = f"What a unit sees: {request.model}, {study.seen}"
        (folder / PICTURE).write_bytes(picture(study.fields, study.reaches, title))
        (folder / JSON).write_text(json.dumps(study.to_json(), indent=1, allow_nan=False) + "\n")
    return study


def measured(request: FieldRequest, log: Log, stages: bool = True) -> Study:
    """The same without files.  stages: False measures the decoder's output alone.  Raises DeployError."""
    window = (request.tiling.window_h, request.tiling.window_w)
    source, tiling = load_for(request.model, request.tiling, request.options, log)
    require_none(tiling, "receptive field, or --stride auto")
    inputs = (_input(image, source.spec, request.tiling) for image in _images(request, source.spec, log))
    if isinstance(source, OnnxSource):
        model = source.graph.model
        fields, how = [perturbed(model, inputs, window, request.seed)], ", by changes of their pixels"
        told = {OUTPUT: reaches(model)[str(model.graph.outputs[0].name)]}
    else:
        assert isinstance(source, TorchSource)
        channels = len(source.spec.mean)
        taps: tuple[Tap, ...] = taps_of(source.module, window, channels) if stages else ()
        torch.set_num_threads(request.threads or cores())
        bar = tqdm(inputs, total=request.windows, unit="window", disable=None, leave=False)
        fields, how = measure(source.module, bar, window, taps, request.seed), ""
        told = reaches(tapped_graph(source.module, taps, window, channels))
    seen = f"{fields[-1].images} window(s) of {request.data.name if request.data else 'rendered scenes'}{how}"
    log("fields", f"{len(fields)} map(s), {seen}, {window[0]}x{window[1]}")
    return Study(
        summary(source.spec), source.spec.source_sha256, window=window, seen=seen, fields=tuple(fields),
        reaches=tuple(told[one.name] for one in fields),
    )  # fmt: skip


def _input(image: UInt8, spec: ModelSpec, tiling: Tiling) -> Float32:
    size = (tiling.window_h, tiling.window_w)
    return core.gather(image, 0, 0, size, spec.mean, spec.std, order=spec.order, padding=tiling.padding)[None]


def _images(request: FieldRequest, spec: ModelSpec, log: Log) -> Iterator[UInt8]:
    """Pieces (H, W, 3) of one window's size.  Raises DeployError where no photograph is as large as that."""
    height, width = request.tiling.window_h, request.tiling.window_w
    if request.data is None:
        log("images", "rendered scenes; --data takes photographs of what the model is for")
        for seed in range(request.windows):
            yield render_bands(seed, height, width, len(spec.mean))
        return
    every, notes = photographs([str(request.data)])
    chosen = draw_from(
        every,
        request.tiling,
        count=request.windows,
        seed=request.seed,
        max_pixels=request.max_pixels,
        wanted=spec.pixels,
    )
    for note in notes:
        log("warning", note)
    small: tuple[int, int] | None = None
    taken = 0
    for place in chosen.places:
        image = sized(read_image(place.image, request.max_pixels, spec.pixels), spec, request.tiling)
        if image.shape[0] < height or image.shape[1] < width:
            small = image.shape[:2]
            continue
        taken += 1
        yield image[place.top : place.top + height, place.left : place.left + width]
    if small is not None and not taken:
        raise DeployError(
            f"receptive field: got images of {small[1]}x{small[0]}, expected some that fill a window of "
            f"{width}x{height}, for beyond an image there is nothing to see; give a smaller --tile"
        )
    if small is not None:
        log("warning", f"{len(chosen.places) - taken} place(s) in images smaller than the window left out")


def _check_folder(folder: Path) -> None:
    """Refuse a place that holds anything but an earlier study."""
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {JSON, PICTURE}):
        raise DeployError(f"output {folder}: holds other files, and is left alone; give another -o")
