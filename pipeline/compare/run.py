"""`deploy.py compare`: build every precision, measure them side by side, judge, and write the report."""

from __future__ import annotations

import importlib.metadata
import json
import math
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from calib.data.datasets import LabelOptions, open_dataset
from calib.data.label_map import LabelMap
from calib.ranges.ranges import Ranges, is_ranges
from calib.ranges.split import Split, photograph, split
from calib.ranges.windows import CalibrationSet
from engines.backends import choose_backend
from engines.bundle import ENGINE, MANIFEST, MODEL, Manifest, writing
from engines.contract import PRECISIONS, Log
from engines.errors import DeployError
from engines.files import file_sha256
from engines.images.read import MAX_PIXELS
from engines.measure.bench import settings
from engines.spec import Pixels
from engines.views.views import ImageViews
from pipeline.build import build_bundle
from pipeline.checkpoints.margins import load_for
from pipeline.checkpoints.processor import announce_resize
from pipeline.compare.augment import augmented
from pipeline.compare.frames import Frames
from pipeline.compare.gpu_floor import SHOWN, gpu_floors
from pipeline.compare.judge import Limits, judge, verdict
from pipeline.compare.measure import Measured, measure
from pipeline.compare.report.write import FILES, JSON, RANGES, write
from pipeline.compare.rows import Comparison, Row, yardstick
from pipeline.exact import Exact, exact_graph
from pipeline.figures.canvas import require_matplotlib
from pipeline.graph.given import is_onnx
from pipeline.graph.macs import count_macs
from pipeline.precision.already import refuse
from pipeline.precision.calibrate import CalibrateRequest, draw
from pipeline.precision.calibrate import measure as measure_ranges
from pipeline.provenance import announce, not_seen
from pipeline.request import BuildRequest

QUANTISED = {"int8", "fp8", "auto"}  # what needs ranges
GPU_BASELINES = (("torch_cuda", "fp32"), ("torch_compile", "fp16"))  # backend, precision
_PACKAGES = ("edgeseg", "numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt")


@dataclass(frozen=True)
class CompareRequest:
    """What `compare` was asked for.

    build: the model, tiling, backend and threads of every build; its precision is set for each, its output is the
    folder of the comparison.  calib: photographs or measured ranges for INT8, or None.  limit: number of images,
    None for all.  views: which each candidate is measured with, too; None does not.
    """

    build: BuildRequest
    data: Path
    precisions: tuple[str, ...]
    _: KW_ONLY
    calib: Path | None = None
    limits: Limits = field(default_factory=Limits)
    rounds: int = 20
    limit: int | None = None
    label_map: LabelMap | None = None
    label_options: LabelOptions = field(default_factory=LabelOptions)
    split: str = "val"
    max_pixels: int = MAX_PIXELS
    views: ImageViews | None = None

    def __post_init__(self) -> None:
        known = set(self.precisions) <= {*PRECISIONS, "auto"}
        if not self.precisions or not known or len(set(self.precisions)) < len(self.precisions):
            raise DeployError(
                f"--precisions: got {','.join(self.precisions)!r}, expected some of {','.join(PRECISIONS)} and auto, "
                "each once"
            )


def compare(request: CompareRequest, log: Log) -> Comparison:
    """Build, measure, judge and write.  A precision that cannot be built or run becomes a row that says why.

    Raises DeployError when the model, the data or the reference is at fault; then nothing is written or replaced.
    """
    require_matplotlib()
    build = request.build
    with writing(build.output, check_folder) as folder:
        steps = _Steps("model", log)
        source, tiling = load_for(build.model, build.tiling, build.options, steps)
        refuse(source.quantised, "auto")
        spec, build = source.spec, replace(build, tiling=tiling)
        request = replace(request, build=build)
        announce_resize(spec, build.tiling, steps)
        dataset = open_dataset(
            request.data, spec, label_map=request.label_map, split=request.split, options=request.label_options
        )
        division = _division(request)
        announce(division, log)
        ranges, chosen = _calibration(request, division, build.wanted(spec), _Steps("calibrate", log))
        seen = chosen.seen if chosen is not None else () if ranges is None else ranges.photographs
        decided = division.selection if division is not None and "auto" in request.precisions else ()
        dataset, unseen = not_seen(dataset, seen, decided, log)
        dataset = dataset.limited(request.limit)
        frames = Frames(dataset, spec, request.max_pixels)
        limits = request.limits.for_data(frames.labelled)
        if request.views is not None and not frames.labelled:
            raise DeployError(f"--tta: got {request.data} without labels, expected some to show what views gain on")
        frames.check_labels()
        log("data", str(dataset))
        if turned := dataset.turned():
            log("warning", turned)
        build = replace(
            build, photographs=division, sample=frames[0].image, sample_file=photograph(dataset.samples[0].image),
            scored=frames.labelled,
        )  # fmt: skip
        exact = exact_graph(source, build, steps)
        if chosen is not None and QUANTISED & set(request.precisions):
            ranges, _ = measure_ranges(exact.graph, chosen, spec, _wanted(request, folder), _Steps("calibrate", log))
        request = replace(request, build=replace(build, ranges=ranges))
        rows = {"reference": _reference(request, exact, folder, log), **_baselines(request, exact, folder, log)}
        for precision in request.precisions:
            rows[precision] = _candidate(request, exact, folder=folder, precision=precision, log=log)
        bundles = {name: folder / row.folder for name, row in rows.items() if row.folder}
        log("measure", f"{len(bundles)} bundles over {len(frames)} image(s), then {request.rounds} timed rounds")
        results = measure(bundles, frames, spec, build.tiling, request.rounds, build.threads)
        judged = _judged(rows, results, limits)
        views = request.views
        beside = () if views is None else augmented(judged, folder, frames, views, build.threads, log)
        comparison = Comparison(
            build.model, spec.source_sha256, parameters=source.parameters, macs=count_macs(exact.graph),
            classes=spec.classes, data_classes=frames.classes,
            tiling=build.tiling.to_json(), data={**dataset.to_json(), **unseen}, limits=limits.to_json(),
            rounds=request.rounds, machine=settings(), versions=_versions(), created=_now(),
            rows=(*judged, *beside),
        )  # fmt: skip
        comparison = verdict(comparison)
        pictures = {rows[name].name: result.worst for name, result in results.items() if isinstance(result, Measured)}
        write(folder, comparison, pictures)
    return comparison


def check_folder(folder: Path) -> None:
    """Refuse a place that holds anything but an earlier comparison."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / JSON).is_file():
        raise DeployError(f"output {folder}: exists and is not a comparison, and is left alone; give another -o")
    try:
        rows = json.loads((folder / JSON).read_text())["rows"]
        written = {row["folder"].split("/")[0] for row in rows} | set(FILES)  # of several models, one folder each
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeployError(f"output {folder}: its {JSON} is not a comparison's; give another -o") from error
    strange = sorted(path.name for path in folder.iterdir() if path.name not in written)
    if strange:
        raise DeployError(
            f"output {folder}: holds {strange[0]}, which no comparison wrote; move it, or give another -o"
        )


def _division(request: CompareRequest) -> Split | None:
    """Of the photographs to calibrate on; None where ranges are given, or nothing."""
    return None if request.calib is None or is_ranges(request.calib) else split([str(request.calib)])


def _wanted(request: CompareRequest, folder: Path) -> CalibrateRequest:
    build = request.build
    return CalibrateRequest(
        build.model, (), folder / RANGES, build.tiling, threads=build.threads, options=build.options,
        max_pixels=request.max_pixels,
    )  # fmt: skip


def _calibration(
    request: CompareRequest, division: Split | None, wanted: Pixels, log: Log
) -> tuple[Ranges | None, CalibrationSet | None]:
    """Ranges that were given, or the windows to measure them on, which fp32 has no use for.  Raises DeployError."""
    if division is not None and set(request.precisions) == {"fp32"}:
        return None, None
    if division is not None:
        return None, draw(_wanted(request, request.build.output), log, wanted, division)
    return (None if request.calib is None else Ranges.load(request.calib)), None


def _reference(request: CompareRequest, exact: Exact, folder: Path, log: Log) -> Row:
    """The model as it comes, in PyTorch, or for an .onnx, which has no module, in ONNX Runtime.  Raises DeployError."""
    backend = "onnxruntime" if is_onnx(request.build.model) else "torch"
    steps = _Steps(backend, log)
    build = replace(request.build, output=folder / backend, precision="fp32", backend=backend)
    manifest = build_bundle(build, steps, exact)
    row = Row(build.model, "fp32", backend, reference=True)
    return _described(row, build.output, manifest, steps)


def _baselines(request: CompareRequest, exact: Exact, folder: Path, log: Log) -> dict[str, Row]:
    """PyTorch on the GPU, by name, where an engine for the GPU is compared and the model has a module.

    One that is compared itself, or that cannot run, is not left out unsaid: it is a candidate, or a row with a reason.
    """
    if is_onnx(request.build.model) or not _on_gpu(request):
        return {}
    rows = {}
    for backend, precision in GPU_BASELINES:
        if backend != request.build.backend or precision not in request.precisions:
            name = f"{backend}-{precision}"
            rows[name] = replace(_build(request, exact, folder, name, backend, precision, log), baseline=True)
    return rows


def _on_gpu(request: CompareRequest) -> bool:
    """Whether any of the precisions would be built for one."""
    for precision in request.precisions:
        with suppress(DeployError):  # what cannot be built says so in its own row
            backend, _ = choose_backend(request.build.backend, "fp32" if precision == "auto" else precision)
            if backend.on_gpu:
                return True
    return False


def _candidate(request: CompareRequest, exact: Exact, folder: Path, precision: str, log: Log) -> Row:
    return _build(request, exact, folder, precision, request.build.backend, precision, log)


def _build(
    request: CompareRequest, exact: Exact, folder: Path, name: str, backend: str, precision: str, log: Log
) -> Row:
    """Build one row.  A refusal or a failed gate becomes the row's reason, in the builder's own words."""
    steps = _Steps(name, log)
    build = replace(request.build, output=folder / name, precision=precision, backend=backend)
    row = Row(build.model, precision, build.backend)
    try:
        row = replace(row, backend=choose_backend(build.backend, "fp32" if precision == "auto" else precision)[0].name)
        manifest = build_bundle(build, steps, exact)
    except DeployError as error:
        steps("failed", str(error))
        return replace(row, reasons=(str(error),), log=tuple(steps.lines))
    return _described(row, build.output, manifest, steps)


class _Steps:
    """Keeps the log of one build, and passes it on under the row's name."""

    def __init__(self, name: str, log: Log) -> None:
        self._name, self._log = name, log
        self.lines: list[tuple[str, str]] = []

    def __call__(self, step: str, text: str) -> None:
        self.lines.append((step, text))
        self._log(self._name, f"{step:11} {text}")


def _described(row: Row, bundle: Path, manifest: Manifest, steps: _Steps) -> Row:
    gpu_floor_ms, note = gpu_floors(bundle / MODEL) if row.judged else ({}, "")
    if gpu_floor_ms:
        steps("gpu floor", f"{gpu_floor_ms.get(SHOWN, math.nan):.2f} ms a window at least on an {SHOWN}: {note}")
    return replace(
        row, folder=bundle.name, backend=manifest.backend, sdk=manifest.sdk, device=manifest.device,
        manifest_sha256=file_sha256(bundle / MANIFEST), bytes=(bundle / ENGINE).stat().st_size,
        verification=manifest.verification, log=tuple(steps.lines),
        gpu_floor_ms=gpu_floor_ms, gpu_floor_note=note,
    )  # fmt: skip


def _judged(rows: dict[str, Row], results: dict[str, Measured | str], limits: Limits) -> tuple[Row, ...]:
    filled = [_filled(row, results.get(name)) for name, row in rows.items()]
    slow = yardstick(filled).timing
    assert slow is not None  # an error of the reference has ended the comparison
    sped = [
        row if row.timing is None else replace(row, speedup=slow.frame.p50 / row.timing.frame.p50) for row in filled
    ]
    base = sped[0]
    return tuple(judge(row, base, limits) if row.judged else replace(row, passed=row.measured) for row in sped)


def _filled(row: Row, result: Measured | str | None) -> Row:
    if result is None:
        return row
    if isinstance(result, str):
        return replace(row, reasons=(result,))
    scores = result.scores
    return replace(
        row,
        miou=None if scores is None else scores.miou,
        pixel_accuracy=None if scores is None else scores.aacc,
        class_iou=None if scores is None else tuple(each.iou for each in scores.classes),
        agreement=result.agreement, executed=result.executed, timing=result.timing,
        windows=result.windows, frame_size=result.frame_size,
        peak_bytes=result.peak_bytes, load_ms=result.opened.load_ms,
    )  # fmt: skip


def _versions() -> dict[str, Any]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
