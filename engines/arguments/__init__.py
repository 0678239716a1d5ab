"""The options of every verb, and the words that they are written in; deploy.py has the verbs themselves.

Needs argparse and this package alone: `run` on a device parses without torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engines.arguments.groups import (
    band_arguments,
    batch,
    budget_arguments,
    data_arguments,
    engine_arguments,
    fleet_arguments,
    loading_arguments,
    model_arguments,
    preprocessing_arguments,
    raster_arguments,
    resize_argument,
    rewrite_argument,
    tensorrt_arguments,
    threshold_argument,
    video_arguments,
    views_arguments,
    window_arguments,
)
from engines.arguments.values import (
    count,
    factors,
    number,
    percent,
    positive,
    share,
    size,
    width_height,
    words,
)
from engines.contract import PRECISIONS
from engines.errors import DeployError
from engines.images.read import MAX_PIXELS

# What a bundle's graph was made for, and a rebuild of it cannot change.
FIXED_IN_A_BUNDLE = (
    "precision", "resize", "tile", "stride", "blend", "padding", "weights", "arg", "output_name", "classes", "mean",
    "std", "bgr", "bands", "scale", "sample", "rewrites", "tail", "time_rewrites", "threshold", "calib", "rest",
    "no_islands", "no_smooth", "no_bias_correction", "rounding", "depthwise", "unsigned", "eval", "max_drop", "skip",
    "share", "budget_ms", "size",
)  # fmt: skip


def build_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `build-engine`."""
    verb.add_argument(
        "model",
        metavar="MODEL",
        help="Hugging Face folder, .pth (NVlabs, mmsegmentation, fudan-zvg SETR), .onnx, package.module:function, "
        "'demo', or a bundle to rebuild for this machine",
    )
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    verb.add_argument("--precision", choices=(*PRECISIONS, "auto"), default="fp32", help="auto: the fastest in budget")
    verb.add_argument(
        "--calib", type=Path, metavar="DATASET|RANGES.json", help="photographs, or ranges, for int8 and fp8"
    )
    verb.add_argument("--max-drop", type=number, metavar="POINTS", help="that may be lost (0.5): of mIoU on --eval, or "
                      "percent of labels; where given, an int8 build leaves layers out until it holds")  # fmt: skip
    verb.add_argument("--eval", type=Path, metavar="DATASET", help="labelled images whose mIoU decides in place "
                      "of the logits; auto scores every plan on them")  # fmt: skip
    verb.add_argument("--batch", type=batch, metavar="N", help="windows that the engine takes at once, after it was "
                      "seen to answer them as one by one (1; a rebuild keeps the bundle's)")  # fmt: skip
    engine_arguments(verb)
    budget_arguments(verb)
    verb.add_argument("--size", type=width_height, metavar="WxH", help="with --stride auto: of the images that time is "
                      "predicted for, on two windows")  # fmt: skip
    _lowering_arguments(verb)
    data_arguments(verb)
    _graph_arguments(verb)
    tensorrt_arguments(verb)
    verb.set_defaults(fixed={name: verb.get_default(name) for name in FIXED_IN_A_BUNDLE})


def _lowering_arguments(verb: argparse.ArgumentParser) -> None:
    """What is computed in which type."""
    group = verb.add_argument_group("lower precisions")
    group.add_argument("--skip", action="append", default=[], metavar="LAYER", help="that int8 leaves out, or "
                       "FIRST..LAST; may be given again")  # fmt: skip
    group.add_argument("--board", default="", metavar="NAME", help="GPU whose roofline decides which layers gain from "
                       "8 bits, such as 'AGX Orin 64GB' (the GPU here, or what the backend is made for)")  # fmt: skip
    group.add_argument("--rest", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="what int8 leaves")
    group.add_argument(
        "--depthwise", action="store_true", help="depthwise convolutions in int8 too; measure whether it pays"
    )
    group.add_argument("--unsigned", action="store_true", help="int8 activations that cannot be negative get 256 "
                       "levels instead of 128: closer, for OpenVINO alone")  # fmt: skip
    group.add_argument("--no-islands", action="store_true", help="no FP32 islands in fp16 and bf16; the gate decides")
    group.add_argument("--no-smooth", action="store_true", help="int8 without SmoothQuant rescaling")
    group.add_argument("--no-bias-correction", action="store_true", help="int8 without bias correction")
    group.add_argument("--rounding", choices=("nearest", "learned"), default="nearest", help="of int8 weights; "
                       "learned: on the photographs of --calib, kept where it lowers the error")  # fmt: skip


def _graph_arguments(verb: argparse.ArgumentParser) -> None:
    """How the graph is rewritten, and what it is held against."""
    group = verb.add_argument_group("rewrites and gates")
    rewrite_argument(group)
    group.add_argument("--tail", action="store_true", help="on a GPU, a kernel of its own for a decoder's tail")
    group.add_argument("--time-rewrites", action="store_true", help="measure what each rewrite gains on this machine")
    group.add_argument("--sample", type=Path, metavar="IMAGE", help="verify on this photograph, not a rendered scene")
    group.add_argument("--max-error", type=number, metavar="R", help="allowed |difference| over the largest logit")
    group.add_argument("--min-agreement", type=share, metavar="P", help="required share of equal labels, 0..1")


def refuse_fixed(args: argparse.Namespace) -> None:
    """Raises DeployError where what is rebuilt is a bundle, and an option was given that cannot change one."""
    changed = [name for name, default in args.fixed.items() if getattr(args, name) != default]
    given = ["--no-rewrites" if name == "rewrites" else f"--{name.replace('_', '-')}" for name in changed]
    if given:
        raise DeployError(
            f"{' '.join(given)}: a bundle is rebuilt as it is; to change that, build from the model that it came from"
        )


def calibrate_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `calibrate`."""
    verb.set_defaults(blend="uniform")  # ranges do not depend on it
    verb.add_argument("model", metavar="MODEL", help="as for build-engine")
    verb.add_argument("dataset", nargs="+", metavar="DATASET", help="folder with images, searched through, or images")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="RANGES.json")
    verb.add_argument("--method", metavar="NAME", help="max, percentile, entropy or mse (mse): how to clip")
    verb.add_argument("--percentile", type=float, metavar="P", help="for --method percentile (99.99)")
    verb.add_argument("--windows", type=positive, default=64, metavar="N", help="at most so many, over all images")
    verb.add_argument("--seed", type=int, default=0, help="which windows are drawn")
    verb.add_argument("--threads", type=count, default=0, metavar="N", help="0: all cores of this process")
    verb.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")
    rewrite_argument(verb)
    window_arguments(verb)
    model_arguments(verb)
    preprocessing_arguments(verb)


def run_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `run`."""
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, video, folder, glob, rtsp://…, /dev/video0, - (standard input), or 'demo': photographs that ship",
    )
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    verb.add_argument("--recursive", action="store_true", help="folders within folders too; DIR then mirrors them")
    verb.add_argument("--overlay", action="store_true", help="also write NAME.overlay.jpg, or .mp4")
    verb.add_argument("--confidence", action="store_true", help="also write NAME.confidence.png, 255 = certain")
    threshold_argument(verb, "the bundle's")
    verb.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")
    band_arguments(verb)
    verb.add_argument("--keep-nodata", action="store_true", help="label pixels that the image hides, too (alpha 0, its "
                      "nodata value); else they are 255")  # fmt: skip
    loading_arguments(verb)
    views_arguments(verb)
    raster_arguments(verb)
    video_arguments(verb)
    fleet_arguments(verb)


def inspect_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `inspect`."""
    verb.add_argument("target", metavar="BUNDLE|MODEL")
    verb.add_argument("--tile", type=size, default=(1024, 1024), metavar="N|HxW", help="to look at a model at")
    verb.add_argument("--layers", action="store_true", help="list what each layer of a bundle really runs in here")
    verb.add_argument("--gpu-plan", action="store_true", help="list the kernels that NVIDIA's compiler makes of a "
                      "bundle or an .onnx, and what they cost at least on named boards")  # fmt: skip
    loading_arguments(verb)
    model_arguments(verb)


def receptive_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `receptive-field`."""
    verb.set_defaults(stride=None, blend="uniform", padding="zero")  # one window at a time
    verb.add_argument("model", metavar="MODEL", help="as build-engine takes it; of an .onnx the output alone")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    verb.add_argument("--data", type=Path, metavar="DATASET", help="photographs to average over (rendered scenes)")
    resize_argument(verb, "none")
    verb.add_argument("--tile", type=size, metavar="N|HxW", help="window (1024, or WxH of --resize)")
    verb.add_argument("--windows", type=positive, default=8, metavar="N", help="at most so many, over all images")
    verb.add_argument("--seed", type=count, default=0, help="which windows are drawn")
    verb.add_argument("--threads", type=count, default=0, metavar="N", help="0: all cores of this process")
    verb.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")
    model_arguments(verb)
    preprocessing_arguments(verb)


def compare_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `compare`."""
    verb.add_argument("models", nargs="+", metavar="MODEL", help="as build-engine takes it; of several, each is "
                      "compared by itself, then all with one another")  # fmt: skip
    verb.add_argument(
        "--data", type=Path, required=True, metavar="DATASET", help="as for evaluate, or unlabelled images"
    )
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write")
    verb.add_argument("--precisions", type=words, default=PRECISIONS[:-1], metavar="P,P", help="what to build (all but "
                      "fp8)")  # fmt: skip
    verb.add_argument(
        "--calib", type=Path, metavar="DATASET|RANGES.json", help="photographs, or ranges, for int8 and fp8"
    )
    engine_arguments(verb)
    data_arguments(verb)
    views_arguments(verb, resize=False)
    verb.add_argument("--rounds", type=positive, default=20, metavar="N", help="timed frames of every engine")
    verb.add_argument("--resolutions", type=factors, default=(), metavar="F,F", help="with several models: also score "
                      "each on images resized by these factors")  # fmt: skip
    verb.add_argument(
        "--max-drop", type=number, default=0.5, metavar="POINTS", help="of mIoU that a precision may lose"
    )
    verb.add_argument("--min-agreement", type=share, metavar="P", help="share of labels that must be the reference's, "
                      "0..1 (0.95, or 0.99 where there are no labels to score)")  # fmt: skip
    verb.add_argument("--fail-under", type=percent, nargs="?", const=0.0, metavar="MIOU", help="exit with 3 unless "
                      "every precision passes, and reaches this mIoU if given: 0.7, or 70 for percent")  # fmt: skip


def bench_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `bench`."""
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    frame = verb.add_mutually_exclusive_group()
    frame.add_argument("--image", type=Path, metavar="FILE", help="the frame to segment")
    frame.add_argument("--size", type=width_height, metavar="WxH", help="of a frame of noise (one window)")
    verb.add_argument("--rounds", type=positive, default=20, metavar="N")
    verb.add_argument("--warmup", type=positive, default=2, metavar="N", help="rounds before the clock runs")
    verb.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the result there, as JSON")
    loading_arguments(verb)


def plan_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `plan`."""
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument("--size", type=width_height, required=True, metavar="WxH", help="of the images")
    verb.add_argument("--field", type=Path, metavar="FILE", help="receptive-field.json, where the bundle was not built "
                      "with --stride auto")  # fmt: skip
    budget_arguments(verb)
    verb.add_argument("--measure", action="store_true", help="time the windows again, though the bundle knows them")
    loading_arguments(verb)


def evaluate_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `evaluate`."""
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument("dataset", type=Path, metavar="DATASET", help="images/ beside labels/ (index PNGs), or a "
                      "Cityscapes, ADE20K, PASCAL Context, COCO-Stuff or CamVid tree")  # fmt: skip
    verb.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write DIR/evaluate.json")
    data_arguments(verb)
    views_arguments(verb)
    threshold_argument(verb, "the bundle's")
    verb.add_argument("--fail-under", type=percent, metavar="MIOU", help="exit with 3 if lower: 0.7, or 70")
    loading_arguments(verb)


def triton_arguments(verb: argparse.ArgumentParser) -> None:
    """Of `export-triton`."""
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument(
        "-o", "--output", type=Path, required=True, metavar="REPOSITORY", help="folder of models; may hold others"
    )
    verb.add_argument("--name", metavar="NAME", help="of the model (the bundle's folder's)")


class Version(argparse.Action):
    """Looks the version up only when it is asked for: that takes as long as importing numpy."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import importlib.metadata

        try:
            print("edgeseg", importlib.metadata.version("edgeseg"))
        except importlib.metadata.PackageNotFoundError:
            parser.error("--version: edgeseg is not installed, only copied; run: pip install -e .")
        parser.exit()
