"""`deploy.py compare MODEL MODEL ...`: every model by itself, then all engines in turn on the same frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calib.data.datasets import open_dataset
from engines.bundle import writing
from engines.contract import Log, UInt8
from engines.errors import DeployError
from engines.measure.bench import Timing
from engines.spec import ModelSpec
from pipeline.checkpoints.sources import load_source
from pipeline.compare.frames import Frames
from pipeline.compare.measure import take_turns
from pipeline.compare.models.names import names
from pipeline.compare.models.report import write
from pipeline.compare.models.resized import miou_at
from pipeline.compare.models.rows import Overview, Subject
from pipeline.compare.rows import Comparison
from pipeline.compare.run import CompareRequest, check_folder, compare
from pipeline.figures.canvas import require_matplotlib

KEPT = 8  # frames in memory


def compare_models(requests: Sequence[CompareRequest], factors: Sequence[float], log: Log) -> Overview:
    """Compare two or more models, and write what `compare` writes for each, and one table and picture of all.

    requests: alike but for the model and its stride.  factors: by which images are resized, to score what each model
    would ship on other resolutions as well.
    Raises DeployError as `compare` does; then nothing is written or replaced.
    """
    require_matplotlib()
    request, models = requests[0], [each.build.model for each in requests]
    if len(set(models)) < len(models):
        raise DeployError(f"compare: got {' '.join(models)}, expected different models")
    size, options = (request.build.tiling.window_h, request.build.tiling.window_w), request.build.options
    specs = [load_source(model, size, options).spec for model in models]
    called = names(models)
    with writing(request.build.output, check_folder) as folder:
        compared: dict[str, Comparison] = {}
        for name, each in zip(called, requests, strict=True):
            build = replace(each.build, output=folder / name)
            compared[name] = compare(replace(each, build=build), _under(name, log))
        frames = _frames(request, specs[0])
        images = _of_one_size(frames, request.rounds)
        bundles = {
            (name, row.name): folder / name / row.folder
            for name, comparison in compared.items() for row in comparison.rows if row.measured and row.views is None
        }  # fmt: skip
        log("measure", f"{len(bundles)} bundles of {len(models)} models in turn, {request.rounds} rounds")
        timings = take_turns(bundles, images, request.rounds, request.build.threads)
        subjects = []
        for (name, comparison), spec in zip(compared.items(), specs, strict=True):
            kind, own = f"{spec.architecture} {spec.variant.rpartition(':')[2]}", _of(name, timings)
            subject = Subject(name, comparison, own, architecture=kind)
            if factors and comparison.labelled:
                subject = _resized(subject, folder / name, _frames(request, spec), factors, request, log)
            subjects.append(subject)
        overview = Overview(tuple(subjects), request.rounds, images[0].shape[:2])
        write(folder, overview)
    return overview


def _resized(
    subject: Subject, folder: Path, frames: Frames, factors: Sequence[float], request: CompareRequest, log: Log
) -> Subject:  # fmt: skip
    """With the scores of what it would ship, or of its reference, on images of other sizes."""
    comparison = subject.comparison
    row = next((row for row in comparison.rows if row.name == comparison.ship), comparison.reference)
    sizes = ", ".join(f"{factor:g}" for factor in factors)
    log(subject.name, f"{'resolution':11} {row.name} on images of {sizes} times their size")
    scores = miou_at(folder / row.folder, frames, factors, request.build.threads)
    return replace(subject, resized=row.name, miou_at=scores)


def _of(name: str, timings: Mapping[tuple[str, str], Timing]) -> dict[str, Timing]:
    return {row: timing for (of, row), timing in timings.items() if of == name}


def _frames(request: CompareRequest, spec: ModelSpec) -> Frames:
    dataset = open_dataset(
        request.data, spec, label_map=request.label_map, split=request.split, options=request.label_options
    )
    return Frames(dataset.limited(request.limit), spec, request.max_pixels)


def _of_one_size(frames: Frames, count: int) -> list[UInt8]:
    """At most so many images, of the size that is commonest among the first so many."""
    images = [frames[index].image for index in range(min(count, len(frames), KEPT))]
    (commonest, _), *_ = Counter(image.shape for image in images).most_common(1)
    return [image for image in images if image.shape == commonest]


def _under(name: str, log: Log) -> Log:
    return lambda step, text: log(name, f"{step:11} {text}")
