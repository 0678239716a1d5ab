"""What the image processor beside a Hugging Face checkpoint does: preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.contract import Log
from engines.errors import DeployError
from engines.spec import ModelSpec
from engines.tiling.placement import Tiling
from engines.tiling.sizes import Resize
from pipeline.checkpoints.files import read_json

PROCESSOR = "preprocessor_config.json"
_BEYOND = ("do_center_crop", "do_pad", "do_split_image")  # with one of them an image is not only resized
_DIVIDED = ("MaskFormer", "Mask2Former")  # processors that enlarge sizes to multiples of 32, and pad batches alone
_SIDE = 512  # of SegformerImageProcessor, where the file names none


def processor_fields(folder: Path) -> dict[str, Any]:
    """Fields of a `ModelSpec`: ``mean``, ``std``, ``channel_order``, ``reduce_zero_label``, ``resize``, ``resample``,
    ``direct``.

    {} without a preprocessor_config.json.  transformers computes ``(pixel * rescale_factor - mean) / std``; dividing
    mean and std by the factor moves them to the 0..255 scale.  Raises DeployError.
    """
    path = folder / PROCESSOR
    if not path.is_file():
        return {}
    config = read_json(path)
    apple = str(config.get("image_processor_type", config.get("feature_extractor_type", ""))).startswith("MobileViT")
    normalize = config.get("do_normalize", not apple)  # its processor has no mean, and turns RGB to BGR
    try:
        scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
        mean = _triple(config.get("image_mean", (0.485, 0.456, 0.406)) if normalize else 0.0)
        std = _triple(config.get("image_std", (0.229, 0.224, 0.225)) if normalize else 1.0)
        reduce = config.get("do_reduce_labels", config.get("reduce_labels", False))
        # Ten decimals turn 123.67500000000001 into 123.675 and lie far below float32.
        return {
            "mean": tuple(round(value / scale, 10) for value in mean),
            "std": tuple(round(value / scale, 10) for value in std),
            "channel_order": "BGR" if config.get("do_flip_channel_order", apple) else "RGB",
            "reduce_zero_label": bool(reduce),
            "resize": resize_words(config),
            "resample": _filter(config.get("resample", 2)),
            "direct": True,
        }
    except (TypeError, ValueError, ArithmeticError) as error:
        raise DeployError(f"{path}: got unusable numbers ({error}), expected image_mean, image_std of 3") from error


def asked_resize(model: str, asked: str) -> str:
    """``--resize`` without ``checkpoint``: what the processor of `model`, a folder, does.  Raises DeployError."""
    if asked != "checkpoint":
        resize = Resize.parse(asked)
        return "none" if resize is None else str(resize)
    found = str(processor_fields(Path(model)).get("resize", "")) if Path(model).is_dir() else ""
    if not found and Path(model, PROCESSOR).is_file():
        config = read_json(Path(model, PROCESSOR))
        more = [f"{name}={config[name]}" for name in (*_BEYOND, "size") if config.get(name)]
        raise DeployError(
            f"--resize checkpoint: the processor of {model} does more than resize images ({', '.join(more)}); give the "
            "size with WxH, short=N, short=N,long=M or long=N"
        )
    if not found:
        raise DeployError(
            f"--resize checkpoint: got {model}, where no {PROCESSOR} says what images are resized to alone; expected "
            "none, WxH, short=N or long=N"
        )
    return found


def announce_resize(spec: ModelSpec, tiling: Tiling, log: Log) -> None:
    """Say what the checkpoint's processor does to an image's size, and what will be done."""
    done = "run at their own size" if tiling.resize == "none" else f"brought to {tiling.resize}, {spec.resample}"
    if spec.resize and spec.resize != tiling.resize:
        does = "leaves images as they are" if spec.resize == "none" else f"resizes to {spec.resize}, {spec.resample}"
        log("resize", f"the checkpoint's processor {does}; here they are {done}; --resize checkpoint does as it does")
    elif tiling.resize != "none":
        as_well = ", as by the checkpoint's processor" if spec.resize else ""
        log("resize", f"images are {done}{as_well}")


def resize_words(config: Mapping[str, Any]) -> str:
    """In the words of ``--resize``; "" where the processor does what those cannot say."""
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    divided = kind.startswith(_DIVIDED)
    if any(config.get(name) for name in _BEYOND if not (divided and name == "do_pad")):
        return ""
    if not config.get("do_resize", True):
        return "none"
    size = config.get("size", _SIDE)
    if isinstance(size, int):
        size = {"height": size, "width": size}
    divisor = config.get("size_divisor", 32) if divided else 1
    by = f",by={divisor}" if divisor > 1 else ""
    match size:
        case {"height": int(height), "width": int(width)}:
            text = "x".join(str(-(-side // max(1, divisor)) * max(1, divisor)) for side in (width, height))
        case {"shortest_edge": int(short), "longest_edge": int(long)}:
            text = f"short={short},long={long}{by}:floor"
        case {"shortest_edge": int(short), **others} if not others.get("longest_edge"):
            text = f"short={short}{by}:floor"
        case _:
            return ""
    Resize.parse(text)
    return text


def _filter(resample: Any) -> str:
    """Pillow's filter of this number.  Raises ValueError."""
    names = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
    if not isinstance(resample, int) or not 0 <= resample < len(names):
        raise ValueError(f"resample {resample!r}, not one of Pillow's filters 0 to 5")
    return f"pillow-{names[resample]}"


def _triple(value: Any) -> tuple[float, float, float]:
    a, b, c = (value, value, value) if isinstance(value, (int, float)) else value
    return float(a), float(b), float(c)
