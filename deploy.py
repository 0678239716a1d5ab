#!/usr/bin/env python3
"""edgeseg: compile a trained ViT segmentation model into a verified engine, and run it in tiled windows.

Exit codes: 0 done, 2 the input is at fault (one line says how), 3 a gate failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.agreement import GATES, Gate
from engines.base import BACKENDS, PRECISIONS
from engines.bundle import is_bundle, open_bundle
from engines.errors import DeployError, GateError
from engines.images import MAX_PIXELS, read_image
from engines.tiling import BLENDS, PADDINGS, Tiling

if TYPE_CHECKING:
    from pipeline.precision.lower import LowerOptions


def build_engine(args: argparse.Namespace) -> int:
    """compile MODEL into a bundle for this machine, verified at every step"""
    gate = GATES[args.precision]
    gate = Gate(
        gate.max_relative if args.max_error is None else args.max_error,
        gate.min_labels if args.min_agreement is None else args.min_agreement,
    )
    log = _logger(args.json)
    if is_bundle(Path(args.model)):
        from engines.assemble import rebuild

        manifest = rebuild(Path(args.model), args.output, args.backend, args.threads, gate, log)
    else:
        from calib.ranges import Ranges
        from pipeline.build import BuildRequest, build_bundle
        from pipeline.sources import SourceOptions

        options = SourceOptions(args.weights, args.classes, args.mean, args.std, args.bgr)
        sample = None if args.sample is None else read_image(args.sample)
        request = BuildRequest(
            args.model, args.output, _tiling(args), args.precision, args.backend, args.threads, options, sample, gate,
            None if args.calib is None else Ranges.load(args.calib), _lowering(args),
        )  # fmt: skip
        manifest = build_bundle(request, log)
    size = sum(path.stat().st_size for path in args.output.iterdir())
    log("bundle", f"{args.output}, {size / 1e6:.1f} MB; next: deploy.py run {args.output} IMAGES -o DIR")
    if args.json:
        print(json.dumps(manifest.to_json(), indent=1))
    return 0


def run(args: argparse.Namespace) -> int:
    """segment images with a bundle: index PNGs, and overlays and confidences if asked for"""
    from engines.inputs import expand
    from engines.runner import RunOptions, run_images
    from engines.segmenter import open_segmenter

    paths = expand(args.inputs)
    with open_segmenter(args.bundle, args.threads) as (segmenter, _):
        options = RunOptions(args.overlay, args.confidence, args.max_pixels)
        report = run_images(segmenter, paths, args.output, options)
    print(json.dumps(report.to_json(), indent=1) if args.json else report)
    return 2 if report.failed else 0


def evaluate(args: argparse.Namespace) -> int:
    """score a bundle on a data set: mIoU, IoU by class, pixel and mean accuracy as mmsegmentation computes them"""
    from calib.datasets import LabelOptions, open_dataset
    from calib.label_map import read_label_map
    from engines.segmenter import open_segmenter
    from pipeline.evaluate import EVALUATE_JSON, make_folder, write_json
    from pipeline.evaluate import evaluate as evaluate_bundle

    label_map = None if args.label_map is None else read_label_map(args.label_map)
    with open_segmenter(args.bundle, args.threads) as (segmenter, manifest):
        options = LabelOptions(tuple(args.ignore_label), args.reduce_zero_label)
        dataset = open_dataset(args.dataset, manifest.spec, label_map, args.split, options).limited(args.limit)
        _logger(args.json)("data set", str(dataset))
        if args.output is not None:
            make_folder(args.output)
        result = evaluate_bundle(segmenter, manifest, args.bundle, dataset, args.max_pixels)
    if args.output is not None:
        write_json(args.output / EVALUATE_JSON, result.to_json())
    print(json.dumps(result.to_json(), indent=1) if args.json else result)
    result.require(args.fail_under)
    return 0


def calibrate(args: argparse.Namespace) -> int:
    """measure the ranges of a model's activations on photographs, for lowering it to INT8 or FP16"""
    from pipeline.calibrate import CalibrateRequest
    from pipeline.calibrate import calibrate as measure
    from pipeline.sources import SourceOptions

    options = SourceOptions(args.weights, args.classes, args.mean, args.std, args.bgr)
    request = CalibrateRequest(
        args.model, args.dataset, args.output, _tiling(args), windows=args.windows, seed=args.seed,
        every=args.every, threads=args.threads, options=options, max_pixels=args.max_pixels,
        **{name: getattr(args, name) for name in ("method", "percentile") if getattr(args, name) is not None},
    )  # fmt: skip
    ranges, effort = measure(request, _logger(args.json))
    if args.json:
        report = {key: value for key, value in ranges.to_json().items() if key != "tensors"}
        report |= {"output": str(args.output), "tensors": len(ranges.tensors), "effort": asdict(effort)}
        print(json.dumps(report, indent=1))
    return 0


def inspect(args: argparse.Namespace) -> int:
    """say what a bundle or a model is, and whether a bundle is intact and fits this machine"""
    path = Path(args.target)
    if is_bundle(path) or (path.is_dir() and not (path / "config.json").exists()):
        from engines.inspection import inspect_bundle, inspect_layers

        result, text = inspect_bundle(open_bundle(path))
        if args.layers:
            result["layers"], text = inspect_layers(open_bundle(path))
    else:
        from pipeline.inspection import inspect_model
        from pipeline.sources import SourceOptions

        result, text = inspect_model(args.target, (args.tile, args.tile), SourceOptions(args.weights, args.classes))
    print(json.dumps(result, indent=1) if args.json else text)
    return 0


def compare(args: argparse.Namespace) -> int:
    """build MODEL in several precisions, measure them side by side on a data set, and say which one to ship"""
    from calib.datasets import LabelOptions
    from calib.label_map import read_label_map
    from pipeline.build import BuildRequest
    from pipeline.compare.judge import Limits
    from pipeline.compare.run import CompareRequest
    from pipeline.compare.run import compare as compare_precisions
    from pipeline.compare.table import terminal
    from pipeline.sources import SourceOptions

    options = SourceOptions(args.weights, args.classes, args.mean, args.std, args.bgr)
    build = BuildRequest(
        args.model, args.output, _tiling(args), backend=args.backend, threads=args.threads, options=options
    )
    limits = Limits(args.max_drop, args.min_agreement, args.fail_under or None)
    request = CompareRequest(
        build, args.data, args.precisions, args.calib, limits, args.rounds, args.limit,
        None if args.label_map is None else read_label_map(args.label_map),
        LabelOptions(tuple(args.ignore_label), args.reduce_zero_label), args.split, args.max_pixels,
    )  # fmt: skip
    log = _logger(args.json)
    comparison = compare_precisions(request, log)
    print(json.dumps(comparison.to_json(), indent=1) if args.json else f"\n{terminal(comparison)}")
    log("written", f"{args.output}/compare.html, .json, .md, .png, .svg; bundles beside them")
    return 0 if comparison.passed or args.fail_under is None else GateError.exit_code


def bench(args: argparse.Namespace) -> int:
    """time a bundle: the engine alone and whole frames, split into gather, engine and stitch; and its peak memory"""
    from engines.bench import bench as measure
    from engines.bench import write_json

    image = None if args.image is None else read_image(args.image)
    report = measure(args.bundle, image, args.size, args.rounds, args.warmup, args.threads)
    if args.output:
        write_json(report, args.output)
    print(json.dumps(report.to_json(), indent=1) if args.json else report)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """say what this machine can run, what is missing, and how to get it"""
    from engines.doctor import examine

    findings = examine()
    if args.json:
        print(json.dumps([finding.to_json() for finding in findings], indent=1))
    else:
        for finding in findings:
            fix = f"\n{'':26}-> {finding.fix}" if finding.fix else ""
            print(f"{finding.status:8}{finding.topic:18}{finding.detail}{fix}")
    usable = any(f.status == "ok" and f.topic.startswith("backend") for f in findings)
    core = all(f.status == "ok" for f in findings if f.topic == "tiling core")
    return 0 if usable and core else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deploy.py", description=__doc__, formatter_class=_Help)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _build_arguments(_verb(verbs, "build-engine", build_engine))
    _run_arguments(_verb(verbs, "run", run))
    _evaluate_arguments(_verb(verbs, "evaluate", evaluate))
    _calibrate_arguments(_verb(verbs, "calibrate", calibrate))
    verb = _verb(verbs, "inspect", inspect)
    verb.add_argument("target", metavar="BUNDLE|MODEL")
    verb.add_argument("--tile", type=_positive, default=1024, help="window side at which a model is looked at")
    verb.add_argument("--layers", action="store_true", help="list what each layer of a bundle really runs in here")
    _model_arguments(verb)
    _verb(verbs, "doctor", doctor)
    _compare_arguments(_verb(verbs, "compare", compare))
    _bench_arguments(_verb(verbs, "bench", bench))
    return parser


def _build_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "model",
        metavar="MODEL",
        help="Hugging Face folder, .pth (NVlabs, mmsegmentation, fudan-zvg SETR), .onnx, package.module:function, "
        "'demo', or a bundle to rebuild for this machine",
    )
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    verb.add_argument("--precision", choices=PRECISIONS, default="fp32")
    verb.add_argument("--calib", type=Path, metavar="RANGES.json", help="measured ranges, for int8")
    verb.add_argument("--rest", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="what int8 leaves")
    verb.add_argument("--no-islands", action="store_true", help="no FP32 islands in fp16 and bf16; the gate decides")
    verb.add_argument("--no-smooth", action="store_true", help="int8 without SmoothQuant rescaling")
    verb.add_argument("--no-bias-correction", action="store_true", help="int8 without bias correction")
    _engine_arguments(verb)
    verb.add_argument("--sample", type=Path, metavar="IMAGE", help="verify on this photograph, not a rendered scene")
    verb.add_argument("--max-error", type=float, metavar="R", help="allowed |difference| over the largest logit")
    verb.add_argument("--min-agreement", type=float, metavar="P", help="required share of equal labels, 0..1")


def _engine_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--backend", choices=("auto", *BACKENDS), default="auto")
    _window_arguments(verb)
    verb.add_argument("--blend", choices=BLENDS, default="uniform", help="weights of overlapping windows")
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="0: all cores of this process")
    _model_arguments(verb)
    _preprocessing_arguments(verb)


def _calibrate_arguments(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(blend="uniform")  # ranges do not depend on it
    verb.add_argument("model", metavar="MODEL", help="as for build-engine")
    verb.add_argument("dataset", nargs="+", metavar="DATASET", help="folder with images, searched through, or images")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="RANGES.json")
    verb.add_argument("--method", metavar="NAME", help="max, percentile, entropy or mse (mse): how to clip")
    verb.add_argument("--percentile", type=float, metavar="P", help="for --method percentile (99.99)")
    verb.add_argument("--every", action="store_true", help="also low, high and rms of all other activations (for FP16)")
    verb.add_argument("--windows", type=_positive, default=64, metavar="N", help="at most so many, over all images")
    verb.add_argument("--seed", type=int, default=0, help="which windows are drawn")
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="0: all cores of this process")
    verb.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")
    _window_arguments(verb)
    _model_arguments(verb)
    _preprocessing_arguments(verb)


def _window_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--tile", type=_size, default=(1024, 1024), metavar="N|HxW", help="window (1024)")
    verb.add_argument("--stride", type=_size, metavar="N|HxW", help="step between windows (3/4 of the window)")
    verb.add_argument("--padding", choices=PADDINGS, default="zero", help="outside of an image smaller than the window")


def _preprocessing_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--mean", type=_triple, metavar="R,G,B", help="on the 0..255 scale")
    verb.add_argument("--std", type=_triple, metavar="R,G,B", help="on the 0..255 scale")
    verb.add_argument("--bgr", action="store_true", help="the network expects BGR; mean and std are then B,G,R")


def _model_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--weights", type=Path, metavar="FILE", help="state dict for package.module:function")
    verb.add_argument("--classes", metavar="NAME|FILE", help="a data set's classes, or a file with one name a line")


def _run_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder or glob")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    verb.add_argument("--overlay", action="store_true", help="also write NAME.overlay.jpg")
    verb.add_argument("--confidence", action="store_true", help="also write NAME.confidence.png, 255 = certain")
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="0: all cores of this process")
    verb.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")


def _compare_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="as build-engine takes it")
    verb.add_argument(
        "--data", type=Path, required=True, metavar="DATASET", help="as for evaluate, or unlabelled images"
    )
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    verb.add_argument("--precisions", type=_words, default=PRECISIONS, metavar="P,P", help="what to build")
    verb.add_argument("--calib", type=Path, metavar="DATASET|RANGES.json", help="photographs, or ranges, for int8")
    _engine_arguments(verb)
    _data_arguments(verb)
    verb.add_argument("--rounds", type=_positive, default=20, metavar="N", help="timed frames of every engine")
    verb.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS", help="of mIoU that a precision may lose")
    verb.add_argument("--min-agreement", type=float, metavar="P", help="share of labels that must be the reference's, "
                      "0..1 (0.95, or 0.99 where there are no labels to score)")  # fmt: skip
    verb.add_argument("--fail-under", type=_share, nargs="?", const=0.0, metavar="MIOU", help="exit with 3 unless "
                      "every precision passes, and reaches this mIoU if given: 0.7, or 70 for percent")  # fmt: skip


def _bench_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    frame = verb.add_mutually_exclusive_group()
    frame.add_argument("--image", type=Path, metavar="FILE", help="the frame to segment")
    frame.add_argument("--size", type=_width_height, metavar="WxH", help="of a frame of noise (one window)")
    verb.add_argument("--rounds", type=_positive, default=20, metavar="N")
    verb.add_argument("--warmup", type=_positive, default=2, metavar="N", help="rounds before the clock runs")
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="0: all cores of this process")
    verb.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the result there, as JSON")


def _evaluate_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument(
        "dataset",
        type=Path,
        metavar="DATASET",
        help="images/ beside labels/ (index PNGs), or a Cityscapes, ADE20K, PASCAL Context, COCO-Stuff or CamVid tree",
    )
    verb.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write DIR/evaluate.json")
    _data_arguments(verb)
    verb.add_argument("--threads", type=int, default=0, metavar="N", help="0: all cores of this process")
    verb.add_argument("--fail-under", type=_share, metavar="MIOU", help="exit with 3 if lower: 0.7, or 70 for percent")


def _data_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--split", default="val", help="part of a data set that has parts")
    verb.add_argument(
        "--label-map", metavar="FILE.json", help="score in other classes; calib/label_map.py describes it"
    )
    verb.add_argument(
        "--ignore-label",
        type=_label,
        action="append",
        default=[],
        metavar="N",
        help="a number in the label files that is not scored, besides 255; may be given again",
    )
    verb.add_argument(
        "--reduce-zero-label",
        action=argparse.BooleanOptionalAction,
        help="in the label files 0 is ignore and classes count from 1; else as the data set or the model says",
    )
    verb.add_argument("--limit", type=_positive, metavar="N", help="score N images, spread evenly over the set")
    verb.add_argument("--max-pixels", type=_positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


def _verb(verbs: Any, name: str, function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=function.__doc__, description=function.__doc__)
    verb.add_argument("--json", action="store_true", help="print the result as JSON")
    verb.set_defaults(function=function)
    return verb


def _lowering(args: argparse.Namespace) -> LowerOptions:
    from engines.base import choose_backend
    from pipeline.build import rest_of
    from pipeline.precision.lower import LowerOptions

    rest = rest_of(choose_backend(args.backend, args.precision)[0]) if args.rest == "auto" else args.rest
    return LowerOptions(not args.no_islands, not args.no_smooth, not args.no_bias_correction, rest)


def _tiling(args: argparse.Namespace) -> Tiling:
    height, width = args.tile
    stride_h, stride_w = args.stride or (max(1, 3 * height // 4), max(1, 3 * width // 4))
    return Tiling(height, width, stride_h, stride_w, args.blend, args.padding)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value


def _label(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 255:
        raise argparse.ArgumentTypeError(f"got {value}, expected 0 to 255")
    return value


def _share(text: str) -> float:
    """``0.7``, or ``70`` for percent.  1 is all."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"got {value:g}, expected 0 to 1, or up to 100 for percent")
    return value / 100 if value > 1 else value


def _size(text: str) -> tuple[int, int]:
    """``1024`` or ``512x1024`` (height x width)."""
    parts = [_positive(part) for part in text.lower().split("x")]
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected N or HxW")
    return parts[0], parts[-1]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _width_height(text: str) -> tuple[int, int]:
    """``2048x1024`` (width x height, as images are named) -> (height, width)."""
    parts = [_positive(part) for part in text.lower().split("x")]
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT")
    return parts[1], parts[0]


def _triple(text: str) -> tuple[float, float, float]:
    values = [float(part) for part in text.split(",")]
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected three numbers such as 123.7,116.3,103.5")
    return values[0], values[1], values[2]


def _logger(quiet: bool) -> Callable[[str, str], None]:
    """Steps go to stdout as they end, or to stderr when stdout is for JSON."""
    stream = sys.stderr if quiet else sys.stdout
    return lambda step, text: print(f"{step:12}{text}", file=stream, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.  Returns the exit code; argparse itself exits with 2 on a wrong command line."""
    args = _parser().parse_args(argv)
    try:
        return int(args.function(args))
    except DeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing half-written is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
