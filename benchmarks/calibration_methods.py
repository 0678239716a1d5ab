"""Which clipping rule costs least: Linear and Conv inputs rounded to int8, weights untouched, against float32.

    python benchmarks/calibration_methods.py MODEL IMAGES HELD_OUT [--tile 512] [--windows 24] [--test-windows 16]

All rules read the same histograms.  Label agreement and relative logits error on windows of HELD_OUT, in ONNX Runtime
without its optimisations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent.parent))

from calib.ranges.ranges import TensorRange
from calib.ranges.windows import draw_windows
from engines.tiling.placement import Tiling
from pipeline.checkpoints.sources import SourceOptions, load_source
from pipeline.graph.onnx_graph import OnnxGraph, run_onnx
from pipeline.precision.calibrate import graph_of
from pipeline.precision.observe import collect, quantizable_tensors

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "images", "held_out"):
        parser.add_argument(name)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--test-windows", type=int, default=16)
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
