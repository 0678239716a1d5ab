"""What the command line asked for, as the requests that the verbs of build time take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from calib.data.datasets import open_dataset
from calib.ranges.ranges import Ranges, is_ranges
from calib.ranges.split import Split, photograph, split
from engines.arguments import groups
from engines.arguments.values import AUTO
from engines.contract import TensorRTOptions
from engines.errors import DeployError
from engines.tiling.placement import Tiling
from engines.tiling.sizes import Resize
from engines.views.views import ImageViews, views_of
from pipeline.checkpoints.processor import asked_resize
from pipeline.checkpoints.sources import SourceOptions
from pipeline.evaluation.asked import label_map, label_options
from pipeline.request import Budget, BuildRequest, Int8Options, LowerOptions

if TYPE_CHECKING:
    from pipeline.compare.run import CompareRequest
    from pipeline.precision.calibrate import CalibrateRequest
    from pipeline.receptive.auto import AutoStride
    from pipeline.receptive.study import FieldRequest


def build_request(args: argparse.Namespace) -> BuildRequest:
    """Of `build-engine`.  Reads the ranges of --calib."""
    sample_file = None if args.sample is None else photograph(args.sample)
    ranges, photographs = _calibration(args, () if sample_file is None else (sample_file.sha256,))
    return BuildRequest(
        args.model, args.output, _tiling(args, args.model), precision=args.precision, backend=args.backend,
        threads=args.threads, options=source_options(args),
        sample_file=sample_file, upright=not args.as_stored,
        max_error=args.max_error, min_agreement=args.min_agreement, rewrites=args.rewrites,
        time_rewrites=args.time_rewrites, tail=args.tail, ranges=ranges, photographs=photographs,
        lowering=LowerOptions(
            islands=not args.no_islands, smooth=not args.no_smooth, bias=not args.no_bias_correction,
            rest=args.rest, rounding=args.rounding,
            int8=Int8Options("int8", args.depthwise, args.unsigned, tuple(args.skip), board=args.board),
        ),
        budget=_budget(args), leave=args.max_drop is not None, max_pixels=args.max_pixels, batch=args.batch or 1,
        tensorrt=TensorRTOptions(**groups.tensorrt_given(args)), timing_cache=args.timing_cache,
    )  # fmt: skip


def compare_request(args: argparse.Namespace, model: str) -> CompareRequest:
    """Of `compare`, for one of its models."""
    from pipeline.compare.judge import Limits
    from pipeline.compare.run import CompareRequest

    build = BuildRequest(
        model, args.output, _tiling(args, model), backend=args.backend, threads=args.threads,
        options=source_options(args), budget=Budget(args.max_drop), max_pixels=args.max_pixels,
        upright=not args.as_stored,
    )  # fmt: skip
    return CompareRequest(
        build, data=args.data, precisions=args.precisions, calib=args.calib,
        limits=Limits(args.max_drop, args.min_agreement, args.fail_under or None), rounds=args.rounds,
        limit=args.limit, label_map=label_map(args), label_options=label_options(args), split=args.split,
        max_pixels=args.max_pixels, views=_views(args, build.tiling),
    )  # fmt: skip


def calibrate_request(args: argparse.Namespace) -> CalibrateRequest:
    """Of `calibrate`."""
    from pipeline.precision.calibrate import CalibrateRequest

    return CalibrateRequest(
        args.model, args.dataset, args.output, _tiling(args, args.model), windows=args.windows, seed=args.seed,
        rewrites=args.rewrites, threads=args.threads, options=source_options(args), max_pixels=args.max_pixels,
        **{name: getattr(args, name) for name in ("method", "percentile") if getattr(args, name) is not None},
    )  # fmt: skip


def auto_stride(args: argparse.Namespace) -> AutoStride | None:
    """Of `build-engine` and `compare`: how the stride is chosen, where it is left open.  Raises DeployError."""
    from engines.plan.strides import SHARE
    from pipeline.receptive.auto import AutoStride

    share, size, budget = (getattr(args, name, None) for name in ("share", "size", "budget_ms"))
    if args.stride != AUTO:
        for option, value in (("--share", share), ("--size", size), ("--budget-ms", budget)):
            if value is not None:
                raise DeployError(f"{option}: got it with a stride that is given, expected --stride auto")
        return None
    folder = args.calib if args.calib is not None and not is_ranges(args.calib) else getattr(args, "sample", None)
    data = folder or getattr(args, "data", None)
    return AutoStride(SHARE if share is None else share, size=size, budget_ms=budget, data=data)


def field_request(args: argparse.Namespace) -> FieldRequest:
    """Of `receptive-field`."""
    from pipeline.receptive.study import FieldRequest

    return FieldRequest(
        args.model, _tiling(args, args.model), data=args.data, windows=args.windows, seed=args.seed,
        threads=args.threads, options=source_options(args), max_pixels=args.max_pixels,
    )  # fmt: skip


def _views(args: argparse.Namespace, tiling: Tiling) -> ImageViews | None:
    """Which `compare` shows the gain of, on images of the size that its bundles are built for."""
    views = views_of(Resize.parse(tiling.resize), args.tta, args.scales, args.flip, args.tta_merge)
    return views if views.scales else None


def _tiling(args: argparse.Namespace, model: str) -> Tiling:
    """The windows, of images of the size that --resize says."""
    return groups.tiling(args, asked_resize(model, args.resize or "none"))


def source_options(args: argparse.Namespace) -> SourceOptions:
    return SourceOptions(**groups.model_given(args))


def _calibration(args: argparse.Namespace, reserved: tuple[str, ...]) -> tuple[Ranges | None, Split | None]:
    """Ranges measured before, or photographs to measure on; never those `reserved`, by their sha256."""
    if args.calib is None:
        return None, None
    return (
        (Ranges.load(args.calib), None)
        if is_ranges(args.calib)
        else (None, split([str(args.calib)], reserved=reserved))
    )


def _budget(args: argparse.Namespace) -> Budget:
    """What may be lost, and on which data set."""
    max_drop = Budget.max_drop if args.max_drop is None else args.max_drop
    if args.eval is None:
        return Budget(max_drop)
    mapping = label_map(args)
    return Budget(
        max_drop,
        lambda spec: open_dataset(
            args.eval, spec, label_map=mapping, split=args.split, options=label_options(args)
        ).limited(args.limit),
    )
