"""Options that several verbs share, group by group, and what the command line says in them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from engines.arguments.values import (
    AUTO,
    above_zero,
    bands,
    bounds,
    box,
    by_channel,
    cluster,
    count,
    gpu_or_all,
    inside,
    interval,
    label,
    mebibytes,
    named,
    number,
    numbers,
    positive,
    shard,
    size,
    size_or_auto,
    up_to,
)
from engines.backends import BACKENDS
from engines.bundle import MAX_BATCH, Manifest
from engines.contract import TensorRTOptions
from engines.images.read import MAX_PIXELS
from engines.tiling.merge import MERGES
from engines.tiling.placement import BLENDS, PADDINGS, Tiling
from engines.tiling.sizes import Resize
from engines.views.views import ImageViews, resize_of, views_of


def engine_arguments(verb: argparse.ArgumentParser) -> None:
    """The engine, its windows, and the model."""
    verb.add_argument("--backend", choices=("auto", *BACKENDS), default="auto")
    window_arguments(verb, built=True)
    threshold_argument(verb, "the model's, or 0.5")
    verb.add_argument("--threads", type=count, default=0, metavar="N", help="0: all cores of this process")
    device_argument(verb)
    model_arguments(verb)
    preprocessing_arguments(verb)


def threshold_argument(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument("--threshold", type=inside, metavar="T", help="of a network with one channel: the probability "
                      f"above which it is its class, not background ({default})")  # fmt: skip


def tensorrt_arguments(verb: argparse.ArgumentParser) -> None:
    """What TensorRT's builder is asked for.  Absent from the result unless given: a rebuild then keeps what it was."""
    group = verb.add_argument_group("TensorRT", argument_default=argparse.SUPPRESS)
    group.add_argument("--timing-cache", type=Path, metavar="FILE", default=None,
                       help="measurements kept between builds (beside BUNDLE)")  # fmt: skip
    boolean = argparse.BooleanOptionalAction
    group.add_argument("--workspace", type=mebibytes, metavar="MB", help="that kernels may use while they run; else "
                       "what leaves room for others")  # fmt: skip
    group.add_argument("--opt-level", dest="level", type=int, choices=range(6), help="5 builds longest")
    group.add_argument("--aux-streams", type=count, metavar="N", help="0 takes the least memory")
    group.add_argument("--version-compatible", action=boolean, help="the engine loads in later TensorRT too")
    group.add_argument("--hardware", choices=("exact", "same_cc", "ampere_plus"), help="GPUs that it loads on: this "
                       "model, this compute capability, or all from Ampere on")  # fmt: skip
    group.add_argument("--strip-weights", action=boolean, help="take them from model.onnx when it is loaded")


_AUTO = "; auto: the largest at which some window of every pixel holds enough of its receptive field"


def window_arguments(verb: argparse.ArgumentParser, built: bool = False) -> None:
    """Where windows lie.  built: into a bundle, so that the stride may be left to what the model sees."""
    group = verb.add_argument_group("windows")
    resize_argument(group, "none")
    group.add_argument("--tile", type=size, metavar="N|HxW", help="window (1024, or WxH of --resize)")
    group.add_argument("--stride", type=size_or_auto if built else size, metavar="N|HxW|auto" if built else "N|HxW",
                      help=f"step between windows (3/4 of the window){_AUTO if built else ''}")  # fmt: skip
    group.add_argument("--padding", choices=PADDINGS, default="zero", help="outside of images smaller than the window")
    if built:
        group.add_argument("--blend", choices=BLENDS, default="uniform", help="weights of overlapping windows")


def budget_arguments(verb: argparse.ArgumentParser) -> None:
    """How a stride is chosen."""
    verb.add_argument("--share", type=inside, metavar="P", help="of the receptive field's energy that some window of "
                      "every pixel has to hold (0.95)")  # fmt: skip
    verb.add_argument("--budget-ms", type=number, metavar="MS", help="that a frame may take; else the best share inside"
                      " of it")  # fmt: skip


def preprocessing_arguments(verb: argparse.ArgumentParser) -> None:
    """What the network expects of its input."""
    group = verb.add_argument_group("input of the network")
    group.add_argument("--mean", type=by_channel, metavar="R,G,B", help="on the 0..255 scale, one for each channel")
    group.add_argument("--std", type=by_channel, metavar="R,G,B", help="on the 0..255 scale, one for each channel")
    group.add_argument("--bgr", action="store_true", help="the network expects BGR; mean and std are then B,G,R")
    band_arguments(group)


def band_arguments(verb: argparse._ActionsContainer) -> None:
    """What of an image file the network takes."""
    verb.add_argument("--bands", type=bands, metavar="N,N,N", help="of the image files, counted from 1, in the order "
                      "of the network's channels (the first)")  # fmt: skip
    verb.add_argument("--scale", type=interval, metavar="LOW..HIGH", help="values of the image files that become 0 and "
                      "255 (all of 8 or 16 bit)")  # fmt: skip


def raster_arguments(verb: argparse.ArgumentParser) -> None:
    """What is made of rasters: files that lie on a map, or are too large to be decoded."""
    group = verb.add_argument_group("rasters")
    cut = group.add_mutually_exclusive_group()
    cut.add_argument("--window", type=box, metavar="X,Y,W,H", help="this part alone, in pixels")
    cut.add_argument("--bbox", type=bounds, metavar="W,S,E,N", help="this part alone, in map coordinates")
    group.add_argument("--polygons", choices=("gpkg", "geojson"), help="also outlines with class and area")
    group.add_argument("--resume", action="store_true", help="go on where the same run was stopped")


def video_arguments(verb: argparse.ArgumentParser) -> None:
    """What is made of videos and cameras."""
    group = verb.add_argument_group("videos and cameras")
    group.add_argument("--every", type=positive, default=1, metavar="N", help="label one frame in N (1)")
    group.add_argument("--seconds", type=above_zero, metavar="S", help="the first S alone (all, or until Ctrl-C)")
    group.add_argument("--reconnect", type=number, default=300.0, metavar="S", help="dial a camera or stream that "
                       "breaks off again for so many seconds; 0: its end is the end (300)")  # fmt: skip


def fleet_arguments(verb: argparse.ArgumentParser) -> None:
    """How inputs are shared out among runs and machines, and what is told of each."""
    group = verb.add_argument_group("many inputs, many machines")
    group.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="the I-th of N parts: of images by "
                       "name, of a raster by rows")  # fmt: skip
    group.add_argument("--skip-existing", action="store_true", help="leave out images whose masks are there")
    group.add_argument("--log", metavar="FILE|-", help="for every input, as it is finished, append a line of JSON to "
                       "FILE, or print it")  # fmt: skip
    group.add_argument("--ray", type=cluster, nargs="?", const="local", metavar="ADDRESS", help="share the work among "
                       "a Ray cluster: auto or HOST:PORT, or one of this machine's cores and GPUs; a worker has a GPU, "
                       "or --threads cores")  # fmt: skip
    group.add_argument("--stall-timeout", type=positive, metavar="S", help="with --ray: kill a worker that finishes no "
                       "window for so many seconds; others get what it had (never)")  # fmt: skip


def model_arguments(verb: argparse.ArgumentParser) -> None:
    """What a checkpoint may not say of itself."""
    group = verb.add_argument_group("what the model's file does not say")
    group.add_argument("--weights", type=Path, metavar="FILE", help="state dict for package.module:function")
    group.add_argument("--output-name", metavar="NAME", help="which output of an .onnx that has several")
    group.add_argument("--arg", type=named, action="append", default=[], metavar="NAME=VALUE",
                      help="that package.module:function is called with; may be given again")  # fmt: skip
    group.add_argument("--classes", metavar="NAME|FILE", help="a data set's classes, or a file with one name a line")


def data_arguments(verb: argparse.ArgumentParser) -> None:
    """How a data set is read."""
    group = verb.add_argument_group("data set")
    group.add_argument("--split", default="val", help="part of a data set that has parts")
    group.add_argument(
        "--label-map", metavar="FILE.json", help="score in other classes; calib/data/label_map.py describes it"
    )
    group.add_argument(
        "--ignore-label",
        type=label,
        action="append",
        default=[],
        metavar="N",
        help="a number in the label files that is not scored, besides 255; may be given again",
    )
    group.add_argument(
        "--reduce-zero-label",
        action=argparse.BooleanOptionalAction,
        help="in the label files 0 is ignore and classes count from 1; else as the data set or the model says",
    )
    group.add_argument("--as-stored", action="store_true", help="labels were drawn on photographs as they are stored, "
                      "not as their EXIF orientation turns them")  # fmt: skip
    group.add_argument("--label-colors", metavar="bundle|NAME|FILE", help="colours of label files stand for classes: "
                      "of the model's palette, a data set's, or a file of lines 'name R G B' (CVAT's too)")  # fmt: skip
    group.add_argument("--limit", type=positive, metavar="N", help="score N images, spread evenly over the set")
    group.add_argument("--max-pixels", type=positive, default=MAX_PIXELS, metavar="N", help="refuse larger images")


def model_given(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the model, by the names of `pipeline.checkpoints.sources.SourceOptions`."""
    names = ("weights", "classes", "mean", "std", "bgr", "threshold", "output_name", "bands", "scale")
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return given | {"arguments": dict(getattr(args, "arg", ()))}


def tiling(args: argparse.Namespace, resize: str = "none") -> Tiling:
    """resize: as `Tiling` has it; the window is that size where it is exact and no other was asked for."""
    exact = Resize.parse(resize)
    fitting = (exact.height, exact.width) if exact is not None and exact.kind == "exact" else (1024, 1024)
    height, width = args.tile or fitting
    given = None if args.stride == AUTO else args.stride  # which is settled once the model was looked at
    stride_h, stride_w = given or (max(1, 3 * height // 4), max(1, 3 * width // 4))
    return Tiling(
        height, window_w=width, stride_h=stride_h, stride_w=stride_w, blend=args.blend, padding=args.padding,
        resize=resize,
    )  # fmt: skip


def tensorrt_given(args: argparse.Namespace) -> dict[str, Any]:
    """Of TensorRTOptions, those that the command line sets."""
    return {field.name: getattr(args, field.name) for field in fields(TensorRTOptions) if hasattr(args, field.name)}


def views_arguments(verb: argparse.ArgumentParser, resize: bool = True) -> None:
    """Which sizes of an image are run.  resize: whether a bundle's own size may be another."""
    group = verb.add_argument_group("sizes and views")
    if resize:
        resize_argument(group, "what the bundle was built with")
    group.add_argument("--tta", action="store_true", help="merge several scales of each image, and their mirror images")
    group.add_argument("--scales", type=numbers, metavar="S,S", help="of --tta (0.5,0.75,1,1.25,1.5,1.75)")
    group.add_argument("--no-flip", dest="flip", action="store_false", help="--tta without mirror images")
    group.add_argument("--tta-merge", choices=MERGES, help="of the probabilities of --tta (mean)")


def resize_argument(verb: argparse._ActionsContainer, default: str) -> None:
    verb.add_argument("--resize", metavar="none|WxH|short=N|long=N|checkpoint", help="size that images are brought to "
                      f"before they are run; checkpoint: as its own processor does ({default})")  # fmt: skip


def views_given(args: argparse.Namespace) -> Callable[[Manifest], ImageViews]:
    """What the command line says of the views, for `engines.segmenter.open_segmenter`."""

    return partial(_views, args.resize, (args.tta, args.scales, args.flip, args.tta_merge))  # other processes take it


def _views(resize: str | None, given: tuple[Any, ...], manifest: Manifest) -> ImageViews:
    return views_of(resize_of(manifest.tiling.resize if resize is None else resize, manifest.spec), *given)


def batch(text: str) -> int:
    return up_to(MAX_BATCH, text)


def rewrite_argument(verb: argparse._ActionsContainer) -> None:
    verb.add_argument("--no-rewrites", dest="rewrites", action="store_false", help="leave the graph as exported")


def device_argument(verb: argparse.ArgumentParser) -> None:
    every = verb.prog.endswith(" run")
    verb.add_argument("--device", type=gpu_or_all if every else count, metavar="N|all" if every else "N",
                      help="which GPU, from 0 as CUDA counts those that are visible"
                      f"{', or all, each in a process of its own' if every else ''} (the first)")  # fmt: skip


def loading_arguments(verb: argparse.ArgumentParser) -> None:
    """Of verbs that load an engine which was built before."""
    verb.add_argument("--threads", type=count, default=0, metavar="N", help="0: all cores of this process")
    device_argument(verb)
    verb.add_argument("--allow-host-code", dest="host_code", action="store_true", help="load an engine that was built "
                      "with --version-compatible: it runs native code of its own, so know whence it comes")  # fmt: skip
