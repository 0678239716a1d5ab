"""SegFormer-B0 on one 2048x1024 image, from decoded pixels to the label map, in fp32, side by side in one process.

    python benchmarks/end_to_end.py [--rounds 5] [--json FILE]

(a) eager   transformers' model in eager PyTorch, logits stitched in PyTorch as mmsegmentation's slide mode does
(b) ort     the same Hugging Face graph exported to ONNX, in ONNX Runtime, with the same stitching
(c) edgeseg this project: bundle, C tiling core, OpenVINO

All three use the same weights, the same windows (1024, stride 768) and the same number of threads.  Rounds are
interleaved; medians are reported.  Labels are compared where the reference's top two logits differ by 1e-4 or more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.frame import Frame
from benchmarks.slide import clear_pixels, slide
from calib.data.scenes import render
from engines.segmenter import open_segmenter
from engines.tiling.placement import Tiling
from pipeline.build import build_bundle
from pipeline.request import BuildRequest

WINDOW, STRIDE = 1024, 768


def hugging_face_model(classes: int) -> torch.nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    labels = {i: f"class_{i}" for i in range(classes)}
    config = SegformerConfig(num_labels=classes, id2label=labels, label2id={v: k for k, v in labels.items()})
    model = SegformerForSemanticSegmentation(config).eval()
    norm = model.decode_head.batch_norm
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=0.5)  # logits as spread as a trained model's
    return model


def contestants(threads: int, folder: Path) -> tuple[dict[str, Callable], list]:
    """name -> function(image, keep) -> Frame, and what must stay open."""
    import onnxruntime as ort

    model = hugging_face_model(19)
    model.save_pretrained(folder / "hf")

    def eager(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(x).logits

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).logits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_file = folder / "hf.onnx"
        torch.onnx.export(Logits(), (torch.zeros(1, 3, WINDOW, WINDOW),), dynamo=True, verbose=False).save(onnx_file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def in_ort(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    request = BuildRequest(str(folder / "hf"), folder / "bundle", Tiling(WINDOW, WINDOW, STRIDE, STRIDE))
    build_bundle(request, lambda step, text: print(f"  {step:12}{text}", flush=True))
    opened = open_segmenter(folder / "bundle", threads)
    segmenter, _ = opened.__enter__()

    def edgeseg(image: np.ndarray, keep: bool) -> Frame:
        before = (segmenter.device.timings.engine, time.perf_counter())
        labels = segmenter.segment(image).labels
        total, network = time.perf_counter() - before[1], segmenter.device.timings.engine - before[0]
        return Frame(labels, network, total - network)

    return {
        "eager": lambda image, keep: slide(image, eager, WINDOW, STRIDE, keep=keep),
        "ort": lambda image, keep: slide(image, in_ort, WINDOW, STRIDE),
        "edgeseg": edgeseg,
    }, [opened]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    image = render(1, 1024, 2048).image
    with tempfile.TemporaryDirectory() as folder:
        runners, opened = contestants(threads, Path(folder))
        splits: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
        labels = {}
        for round_ in range(args.rounds + 1):  # the first round warms up
            for name, runner in runners.items():
                frame = runner(image, not round_)
                labels[name] = frame.labels
                if round_:
                    splits[name].append({"total": frame.total, "network": frame.network, "rest": frame.rest})
                elif frame.logits is not None:
                    clear = clear_pixels(frame.logits)
        for context in opened:
            context.__exit__(None, None, None)
    rows = []
    for name, runs in splits.items():
        median = {part: statistics.median(run[part] for run in runs) for part in ("total", "network", "rest")}
        equal = float((labels[name] == labels["eager"])[clear].mean())
        rows.append({"name": name, **{f"{k}_ms": 1e3 * v for k, v in median.items()}, "labels_equal": equal})
    ours = rows[-1]["total_ms"]
    print(f"\n{date.today()}, {platform.machine()}, {threads} threads, {args.rounds} rounds, near-ties excluded "
          f"{100 * (1 - clear.mean()):.3f} %")  # fmt: skip
    print(f"{'':10}{'total ms':>10}{'network':>10}{'rest':>10}{'edgeseg is':>14}{'labels equal':>14}")
    for row in rows:
        row["ratio"] = row["total_ms"] / ours
        print(f"{row['name']:10}{row['total_ms']:10.0f}{row['network_ms']:10.0f}{row['rest_ms']:10.0f}"
              f"{row['ratio']:12.2f} x{100 * row['labels_equal']:13.4f}%")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"date": str(date.today()), "threads": threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
