"""Which clipping rule costs least: Linear and Conv inputs rounded to int8, weights untouched, against float32.

    python benchmarks/calibration_methods.py MODEL IMAGES HELD_OUT [--tile 512] [--windows 24] [--test-windows 16]

All rules read the same histograms.  Label agreement and relative logits error on windows of HELD_OUT, in ONNX Runtime
without its optimisations.

    python benchmarks/calibration_methods.py MODEL IMAGES HELD_OUT --engines

compares ways to quantise instead, ranges by mse: label agreement of real OpenVINO int8 engines (rest fp32) with the
fp32 engine, over all pixels and over those within two of a class border of fp32's labels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.ndimage import maximum_filter, minimum_filter

sys.path.insert(0, str(Path(__file__).parent.parent))

from calib.ranges.ranges import Ranges, TensorRange
from calib.ranges.windows import draw_windows
from engines.backends import get_backend
from engines.contract import BuildConfig, Float32
from engines.proof.agreement import Gate
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.fingerprint import graph_sha256
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.graph.proto import stored
from pipeline.precision.as_asked import LEARNED_ON
from pipeline.precision.calibrate import graph_of
from pipeline.precision.lower import lower
from pipeline.precision.observe import collect, quantizable_tensors
from pipeline.request import Int8Options, LowerOptions

RULES = (("max", 100), ("percentile", 99.9), ("percentile", 99.99), ("percentile", 99.999), ("entropy", 0), ("mse", 0))


def rounded(graph: OnnxGraph, ranges: dict[str, TensorRange]) -> OnnxGraph:
    """The graph with a quantise-dequantise pair before each Linear and Conv."""
    model = ir.to_proto(graph.model)
    weights = {item.name for item in model.graph.initializer}
    nodes, done = list(model.graph.node), set()
    del model.graph.node[:]
    for node in nodes:
        name = node.input[0] if node.input else ""
        if node.op_type in ("MatMul", "Gemm", "Conv") and node.input[1] in weights and name in ranges:
            if name not in done:
                done.add(name)
                scale, zero = np.float32(ranges[name].amax / 127), np.int8(0)
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"{name}_scale"))
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(zero), f"{name}_zero"))
                points = [f"{name}_scale", f"{name}_zero"]
                model.graph.node.append(helper.make_node("QuantizeLinear", [name, *points], [f"{name}_q"]))
                model.graph.node.append(helper.make_node("DequantizeLinear", [f"{name}_q", *points], [f"{name}_dq"]))
            node.input[0] = f"{name}_dq"
        model.graph.node.append(node)
    return graph.then(ir.from_proto(model), "int8 activations")


# name -> (SmoothQuant and bias correction, rounding, unsigned activations)
WAYS = {
    "plain": (False, "nearest", False),
    "smooth, bias": (True, "nearest", False),
    "smooth, bias, learned": (True, "learned", False),
    "unsigned": (True, "nearest", True),
    "unsigned, learned": (True, "learned", True),
}
NEAR = 2  # pixels


def at_borders(labels: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Pixels of maps (M, H, W) within NEAR, in both axes, of one with another label."""
    size = (1, 2 * NEAR + 1, 2 * NEAR + 1)
    return np.asarray(maximum_filter(labels, size) != minimum_filter(labels, size))


def engine_labels(graph: OnnxGraph, precision: str, windows: list[Float32]) -> NDArray[np.intp]:
    """(M, H, W) at the size of the windows."""
    backend, config = get_backend("openvino"), BuildConfig(precision=precision)
    with stored(graph.model) as path:
        blob = backend.build(path, config)
    labels = []
    with backend.load(blob, config) as session:
        for window in windows:
            logits = torch.from_numpy(session.run(window).copy())
            whole = torch.nn.functional.interpolate(logits, size=window.shape[2:], mode="bilinear", align_corners=False)
            labels.append(whole.argmax(1)[0].numpy())
    return np.stack(labels)


def compare_engines(
    graph: OnnxGraph, ranges: Ranges, calibration: list[Float32], tests: list[Float32]
) -> Iterator[tuple[str, float, float, float]]:
    """(way, share of labels kept, share kept at borders, seconds that it took to lower)."""
    truth = engine_labels(graph, "fp32", tests)
    border = at_borders(truth)
    reference = run_onnx(graph, tests[:2])
    for name, (corrected, rounding, unsigned) in WAYS.items():
        options = LowerOptions(
            rest="fp32",
            smooth=corrected,
            bias=corrected,
            rounding=rounding,
            int8=Int8Options(unsigned=unsigned),
            photographs=tuple(calibration),
        )
        begin = time.perf_counter()
        lowered = lower(
            graph, "int8", tests[:2], reference=reference, gate=Gate(np.inf, 0.0), log=lambda step, text: None,
            ranges=ranges, options=options,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        same = engine_labels(lowered.graph, "int8", tests) == truth
        yield name, float(same.mean()), float(same[border].mean()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "images", "held_out"):
        parser.add_argument(name)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--test-windows", type=int, default=16)
    parser.add_argument("--engines", action="store_true")
    args = parser.parse_args()
    stride = 3 * args.tile // 4
    tiling = Tiling(args.tile, args.tile, stride, stride)
    source = load_source(args.model, (args.tile, args.tile), SourceOptions())
    graph = graph_of(source)
    chosen = draw_windows([args.images], tiling, args.windows)
    collector = collect(graph, chosen, source.spec, tiling, quantizable_tensors(graph))
    tests = [
        window for _, window in draw_windows([args.held_out], tiling, args.test_windows).inputs(source.spec, tiling)
    ]
    if args.engines:
        ranges = Ranges(
            collector.ranges("mse"), "mse", images=chosen.images, windows=len(chosen.places), seed=chosen.seed,
            dataset_sha256=chosen.sha256, graph_sha256=graph_sha256(graph.model),
        )  # fmt: skip
        calibration = [window for _, window in chosen.inputs(source.spec, tiling)][:: -(-args.windows // LEARNED_ON)]
        print(f"{'way':24}{'labels kept':>14}{'at borders':>14}{'to lower':>12}")
        for name, kept, at_border, seconds in compare_engines(graph, ranges, calibration, tests):
            print(f"{name:24}{100 * kept:12.2f} %{100 * at_border:12.2f} %{seconds:10.0f} s", flush=True)
        return
    truth = run_onnx(graph, tests)
    print(f"{'rule':20}{'label agreement':>18}{'logits error':>15}")
    for method, percentile in RULES:
        logits = run_onnx(rounded(graph, collector.ranges(method, percentile)), tests)
        agreement = (logits.argmax(1) == truth.argmax(1)).mean()
        error = np.sqrt(np.square(logits - truth).mean() / np.square(truth).mean())
        name = f"{method} {percentile:g}" if method == "percentile" else method
        print(f"{name:20}{100 * agreement:16.2f} %{100 * error:13.2f} %", flush=True)


if __name__ == "__main__":
    main()
