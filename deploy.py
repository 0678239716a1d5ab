#!/usr/bin/env python3
"""edgeseg: compile a trained ViT segmentation model into a verified engine, and run it in tiled windows.

Exit codes: 0 done, 1 the GPU was lost, 2 the input is at fault (one line says how), 3 a gate failed, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import arguments
from engines.arguments import groups
from engines.bundle import is_bundle, open_bundle
from engines.contract import Log
from engines.doctor import examine, require_building
from engines.errors import DeployError, GateError
from engines.gpu.visible import choose
from engines.guard.child import guarded, interrupt
from engines.images.read import read_image
from engines.proof.first_run import prover
from engines.segmenter import open_segmenter

if TYPE_CHECKING:
    from pipeline.compare.models.rows import Overview
    from pipeline.compare.rows import Comparison


def build_engine(args: argparse.Namespace) -> int:
    """compile MODEL into a bundle for this machine, verified at every step"""
    log = _logger(args.json)
    if is_bundle(Path(args.model)):
        arguments.refuse_fixed(args)
        from engines.proof.rebuild import rebuild

        manifest = rebuild(
            Path(args.model), args.output, backend_name=args.backend, threads=args.threads,
            max_relative=args.max_error, min_labels=args.min_agreement, log=log,
            batch=args.batch, tensorrt=groups.tensorrt_given(args), timing_cache=args.timing_cache,
        )  # fmt: skip
    else:
        require_building()
        from pipeline.asked import auto_stride, build_request
        from pipeline.build import build_bundle
        from pipeline.receptive.auto import build_at_best

        auto, request = auto_stride(args), build_request(args)
        manifest = build_bundle(request, log) if auto is None else build_at_best(request, auto, log)
    written = sum(path.stat().st_size for path in args.output.iterdir())
    log("bundle", f"{args.output}, {written / 1e6:.1f} MB; next: deploy.py run {args.output} IMAGES -o DIR")
    if args.json:
        print(json.dumps(manifest.to_json(), indent=1))
    return 0


def run(args: argparse.Namespace) -> int:
    """segment images, rasters and videos with a bundle: labels, and overlays and confidences if asked for"""
    from engines.fleet.run import refuse, run_asked
    from engines.report.lines import STDOUT, told

    refuse(args)
    inputs = [_photographs(text) for text in args.inputs]
    with told(args.log) as log:
        report = run_asked(args, inputs, _loading(args), log.put)
        shown = json.dumps(report.to_json(), indent=1) if args.json else report
        print(shown, file=sys.stderr if args.log == STDOUT else sys.stdout)
    return report.ended(log.failure)


def evaluate(args: argparse.Namespace) -> int:
    """score a bundle on a data set: mIoU, IoU by class, pixel and mean accuracy as mmsegmentation computes them"""
    from calib.data.datasets import open_dataset
    from engines.files import make_folder, write_json
    from pipeline.evaluation import evaluate as scoring
    from pipeline.evaluation.asked import label_map, label_options

    mapping = label_map(args)
    with open_segmenter(args.bundle, *_loading(args)) as (segmenter, manifest):
        dataset = open_dataset(
            args.dataset, manifest.spec, label_map=mapping, split=args.split, options=label_options(args)
        ).limited(args.limit)
        log = _logger(args.json)
        log("data set", str(dataset))
        if turned := dataset.turned():
            log("warning", turned)
        if args.output is not None:
            make_folder(args.output)
        result = scoring.evaluate(segmenter, manifest, folder=args.bundle, dataset=dataset, max_pixels=args.max_pixels)
    if args.output is not None:
        write_json(args.output / scoring.EVALUATE_JSON, result.to_json())
    print(json.dumps(result.to_json(), indent=1) if args.json else result)
    result.require(args.fail_under)
    return 0


def calibrate(args: argparse.Namespace) -> int:
    """measure the ranges of a model's activations on photographs, for lowering it to INT8"""
    require_building()
    from pipeline.asked import calibrate_request
    from pipeline.precision import calibrate as calibration

    ranges, effort = calibration.calibrate(calibrate_request(args), _logger(args.json))
    if args.json:
        report = {key: value for key, value in ranges.to_json().items() if key != "tensors"}
        report |= {"output": str(args.output), "tensors": len(ranges.tensors), "effort": asdict(effort)}
        print(json.dumps(report, indent=1))
    return 0


def inspect(args: argparse.Namespace) -> int:
    """say what a bundle or a model is, and whether a bundle is intact and fits this machine"""
    path = Path(args.target)
    if args.gpu_plan:
        from engines.proof.gpu_plan import inspect_gpu_plan

        result, text = inspect_gpu_plan(path, args.host_code)
    elif is_bundle(path) or (path.is_dir() and not (path / "config.json").exists()):
        from engines.proof.inspect import inspect_bundle, inspect_layers

        result, text = inspect_bundle(open_bundle(path))
        if args.layers:
            result["layers"], text = inspect_layers(open_bundle(path), args.threads, args.host_code)
    else:
        require_building()
        from pipeline.asked import source_options
        from pipeline.inspect_model import inspect_model

        result, text = inspect_model(args.target, args.tile, source_options(args))
    print(json.dumps(result, indent=1) if args.json else text)
    return 0


def compare(args: argparse.Namespace) -> int:
    """build MODEL in several precisions, measure them side by side on a data set, and say which one to ship"""
    require_building()
    from pipeline.asked import auto_stride, compare_request
    from pipeline.receptive.auto import at_best

    log, auto = _logger(args.json), auto_stride(args)
    requests = [compare_request(args, model) for model in args.models]
    if auto is not None:
        requests = [replace(request, build=at_best(request.build, auto, log)) for request in requests]
    comparison: Comparison | Overview
    if len(requests) > 1:
        from pipeline.compare.models.report import terminal as terminal_of_models
        from pipeline.compare.models.run import compare_models

        comparison = compare_models(requests, args.resolutions, log)
        text, kinds = terminal_of_models(comparison), "compare.json, .md, .png, .svg; a folder a model"
    else:
        from pipeline.compare.report.table import terminal
        from pipeline.compare.run import compare as compare_precisions

        comparison = compare_precisions(requests[0], log)
        text, kinds = terminal(comparison), "compare.html, .json, .md, .png, .svg; bundles"
    print(json.dumps(comparison.to_json(), indent=1) if args.json else f"\n{text}")
    log("written", f"{args.output}/{kinds} beside them")
    return 0 if comparison.passed or args.fail_under is None else GateError.exit_code


def receptive_field(args: argparse.Namespace) -> int:
    """show how far the units of MODEL see: effective fields by gradient as a picture, theoretical ones by its graph"""
    require_building()
    from pipeline.asked import field_request
    from pipeline.receptive.study import JSON, PICTURE
    from pipeline.receptive.study import receptive_field as study_fields

    log = _logger(args.json)
    study = study_fields(field_request(args), args.output, log)
    print(json.dumps(study.to_json(), indent=1) if args.json else f"\n{study}")
    log("written", f"{args.output / PICTURE}, {JSON} beside it")
    return 0


def bench(args: argparse.Namespace) -> int:
    """time a bundle: the engine, whole frames and their parts, frames in flight; with energy and peak memory"""
    from engines.files import write_json
    from engines.measure.bench import bench as measure

    image = None if args.image is None else read_image(args.image)
    report = measure(args.bundle, image, args.size, args.rounds, args.warmup, args.threads, args.host_code)
    if args.output:
        write_json(args.output, report.to_json())
    print(json.dumps(report.to_json(), indent=1) if args.json else report)
    return 0


def plan(args: argparse.Namespace) -> int:
    """predict windows, share of the receptive field, memory and time of a bundle on images of a size"""
    from engines.plan.plan import plan_bundle
    from engines.plan.strides import SHARE

    found = plan_bundle(
        args.bundle, args.size, _logger(args.json), threads=args.threads, host_code=args.host_code, again=args.measure,
        field=args.field, budget_ms=args.budget_ms, share=args.share or SHARE,
    )  # fmt: skip
    print(json.dumps(found.to_json(), indent=1) if args.json else found)
    return 0


def export_triton(args: argparse.Namespace) -> int:
    """write a bundle as a model of a repository that NVIDIA's Triton Inference Server serves"""
    from engines.serving import export

    found = export.export_triton(args.bundle, args.output, args.name)
    print(json.dumps(found.to_json(), indent=1) if args.json else found)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """say what this machine can run, what is missing, and how to get it"""
    findings = examine()
    if args.json:
        print(json.dumps([finding.to_json() for finding in findings], indent=1))
    else:
        for finding in findings:
            fix = f"\n{'':30}-> {finding.fix}" if finding.fix else ""
            print(f"{finding.status:8}{finding.topic:22}{finding.detail}{fix}")
    usable = any(f.status == "ok" and f.topic.startswith("backend") for f in findings)
    core = all(f.status == "ok" for f in findings if f.topic == "tiling core")
    return 0 if usable and core else 2


def _name() -> str:
    """What was typed: the installed command's name, or this file's."""
    return "edgeseg" if Path(sys.argv[0]).stem == "edgeseg" else "deploy.py"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_name(), description=__doc__, formatter_class=_Help)
    parser.add_argument("--version", nargs=0, action=arguments.Version, help="say which version is installed, and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    arguments.build_arguments(_verb(verbs, "build-engine", build_engine))
    arguments.run_arguments(_verb(verbs, "run", run))
    arguments.evaluate_arguments(_verb(verbs, "evaluate", evaluate))
    arguments.calibrate_arguments(_verb(verbs, "calibrate", calibrate))
    arguments.inspect_arguments(_verb(verbs, "inspect", inspect))
    _verb(verbs, "doctor", doctor)
    arguments.compare_arguments(_verb(verbs, "compare", compare))
    arguments.bench_arguments(_verb(verbs, "bench", bench))
    arguments.plan_arguments(_verb(verbs, "plan", plan))
    arguments.receptive_arguments(_verb(verbs, "receptive-field", receptive_field))
    arguments.triton_arguments(_verb(verbs, "export-triton", export_triton))
    return parser


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def _verb(verbs: Any, name: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=function.__doc__, description=function.__doc__)
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    verb.set_defaults(function=function)
    return verb


def _photographs(text: str) -> str:
    """`demo` stands for the photographs that ship with the project, unless something here is called so."""
    if text != "demo" or Path(text).exists():
        return text
    from pipeline.demo import IMAGES

    return str(IMAGES)


def _loading(args: argparse.Namespace) -> tuple[Any, ...]:
    return args.threads, args.host_code, prover(_logger(True)), args.threshold, groups.views_given(args)


def _logger(quiet: bool) -> Log:
    """Steps go to stdout as they end, or to stderr when stdout is for JSON."""
    stream = sys.stderr if quiet else sys.stdout
    return lambda step, text: print(f"{step:12}{text}", file=stream, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code; argparse itself exits with 2 on a wrong command line."""
    words = sys.argv[1:] if argv is None else list(argv)
    return _called(_parser().parse_args(words), words)


def command() -> int:
    """Entry point of the command line: `main` in a process of its own, whose crash is one line."""
    args = _parser().parse_args()
    return guarded(lambda: _called(args, sys.argv[1:]), f"{args.verb} {_subject(args)}".strip())


def _subject(args: argparse.Namespace) -> str:
    found = (vars(args).get(name) for name in ("model", "models", "bundle"))
    return next((" ".join(each) if isinstance(each, list) else str(each) for each in found if each), "")


def _called(args: argparse.Namespace, words: Sequence[str]) -> int:
    args.words = words
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a file's name may be in any encoding
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)  # kill, too, leaves nothing half-written
    try:
        if isinstance(getattr(args, "device", None), int):
            choose(args.device)
        return int(args.function(args))
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(command())
