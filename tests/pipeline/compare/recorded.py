"""A comparison as it might have been measured: numbers written down, nothing built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.measure.bench import Stats, Timing
from pipeline.compare.judge import Limits, judge, verdict
from pipeline.compare.rows import Comparison, Row
from pipeline.compare.tally import MapAgreement
from pipeline.compare.worst import Picture

CLASSES = ("sky", "building", "road", "pavement", "tree", "pole", "sign", "car", "person")
BASE_IOU = (0.97, 0.88, 0.95, 0.81, 0.84, 0.52, 0.61, 0.86, 0.55)
SOURCE = "0123456789abcdef" * 4


def stats(milliseconds: float) -> Stats:
    return Stats(milliseconds, 1.12 * milliseconds, 1.2 * milliseconds, 1.02 * milliseconds, 0.95 * milliseconds, 20)


def timing(engine: float) -> Timing:
    gather, stitch = 3.1, 9.7
    return Timing(stats(gather + engine + stitch), stats(gather), stats(engine), stats(stitch))


def row(precision: str, engine: float, losses: tuple[float, ...], kept: float, executed: dict[str, float]) -> Row:
    """A candidate on OpenVINO.  losses: points of IoU by class.  kept: share of labels."""
    ious = tuple(iou - loss / 100 for iou, loss in zip(BASE_IOU, losses, strict=True))
    return Row(
        "demo", precision, "openvino", folder=precision, sdk="openvino 2026.4.1", device="cpu x86_64 BF16+FP32+INT8",
        manifest_sha256=SOURCE, executed=executed, bytes=15_500_000, miou=float(np.mean(ious)), pixel_accuracy=0.93,
        class_iou=ious, agreement=MapAgreement(kept, 1 - 12 * (1 - kept), 1 - 2 * (1 - kept), (kept,) * len(CLASSES)),
        timing=timing(engine), windows=3, frame_size=(1024, 2048), peak_bytes=612_000_000, load_ms=240.0,
        verification=({"step": "engine", "reference": "the checkpoint in PyTorch", "labels": kept, "max_abs": 2.5e-5},),
        log=(("compile", f"{precision}, 15.5 MB in 0.3 s"), ("engine", "max |diff| 2.5e-05")),
    )  # fmt: skip


def rows() -> tuple[Row, ...]:
    """The reference, four precisions that were measured (int8 loses too much), and one that could not be built."""
    zero = (0.0,) * len(CLASSES)
    base = replace(row("fp32", 2260.0, zero, 1.0, {"fp32": 1.0}), backend="torch", reference=True, folder="torch",
                   passed=True, speedup=1.0)  # fmt: skip
    candidates = (
        row("fp32", 1180.0, zero, 1.0, {"fp32": 1.0}),
        row("bf16", 690.0, (0.0, 0.05, -0.02, 0.1, 0.03, 0.21, 0.15, 0.02, 0.3), 0.9986, {"bf16": 0.93, "fp32": 0.07}),
        row("int8", 760.0, (0.1, 0.4, 0.1, 0.9, 0.5, 3.1, 1.9, 0.4, 2.2), 0.9871,
            {"int8": 0.61, "bf16": 0.31, "fp32": 0.08}),
        row("auto", 640.0, (0.0, 0.1, -0.05, 0.2, 0.1, 0.5, 0.3, 0.1, 0.4), 0.9967, {"bf16": 0.58, "int8": 0.42}),
    )  # fmt: skip
    slow = 2260.0 + 3.1 + 9.7
    sped = (replace(each, speedup=slow / each.timing.frame.p50) for each in candidates if each.timing)
    failed = Row("demo", "fp16", "openvino", reasons=("engine diverges from the checkpoint in PyTorch: NaN",))
    return (base, *sped, failed)


def comparison(labelled: bool = True, limits: Limits | None = None) -> Comparison:
    base, *rest = rows()
    if not labelled:
        base, *rest = (replace(each, miou=None, class_iou=None, pixel_accuracy=None) for each in (base, *rest))
    bounds = (limits or Limits()).for_data(labelled)
    data = {"path": "scenes", "images": 8, "labelled": 8 if labelled else 0, "sha256": SOURCE, "layout": "plain"}
    machine = {"cpu": "Some CPU", "cores": 2, "system": "Linux 6", "governor": "performance", "tiling_core": "avx2"}
    tiling = {"window_h": 1024, "window_w": 1024, "stride_h": 768, "stride_w": 768, "blend": "uniform",
              "padding": "zero"}  # fmt: skip
    return verdict(Comparison(
        "demo", SOURCE, 3_716_457, 26_354_000_000, CLASSES, CLASSES if labelled else (), tiling, data,
        bounds.to_json(), 20, machine,
        {"edgeseg": "0.1.0", "openvino": "2026.4.1"}, "2026-01-02T03:04:05+00:00",
        (base, *(judge(each, base, bounds) for each in rest)),
    ))  # fmt: skip


def pictures() -> dict[str, tuple[Picture, ...]]:
    """Two worst images for bf16 and int8, drawn."""
    ramp = np.linspace(0, 255, 160, dtype=np.uint8)
    image = np.repeat(np.repeat(ramp[None, :, None], 90, 0), 3, 2)
    picture = Picture("street-<7>.png", 0.9712, image, image[:, ::-1].copy(), 255 - image, image // 2)
    return {"bf16 openvino": (picture,), "int8 openvino": (picture, replace(picture, name="street-8.png"))}
