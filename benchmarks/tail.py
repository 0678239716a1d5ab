"""A decoder's tail in the engine against our own after it, on the CPU: CPU time of one window, logits of both compared.

    python -m benchmarks.tail [MODEL] [--tile 1024] [--rounds 9]

In OpenVINO, in fp32 and bf16.  Rounds are interleaved.  CPU milliseconds of the process over the number of cores: the
wall time of an idle machine, if all cores are busy; so it holds on a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino

from engines.contract import Float32, pack
from engines.errors import DeployError
from pipeline.checkpoints.sources import load_source
from pipeline.graph.export import simplify
from pipeline.graph.proto import save
from pipeline.graph.rewrites import apply_rules
from pipeline.graph.tail.cut import cut
from pipeline.graph.tail.ending import find
from pipeline.request import SourceOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    graph = apply_rules(simplify(load_source(args.model, (args.tile, args.tile), SourceOptions()).export()[0]))[-1]
    found = find(graph)
    model = found if isinstance(found, str) else cut(graph, found, graph)
    if isinstance(found, str) or isinstance(model, str):
        raise DeployError(f"{args.model}: no tail to cut: {model}")
    window = np.random.default_rng(0).standard_normal((1, 3, args.tile, args.tile)).astype(np.float32)
    runs: dict[str, Callable[[], Float32]] = {}
    with TemporaryDirectory() as folder:
        save(graph.model, Path(folder) / "whole.onnx")
        save(model, Path(folder) / "cut.onnx")
        for hint in ("f32", "bf16"):
            whole, engine = (_opened(Path(folder) / f"{name}.onnx", hint, window) for name in ("whole", "cut"))
            runs[f"{hint}, the whole in the engine"] = lambda whole=whole: whole()[0]
            runs[f"{hint}, engine and our tail"] = lambda engine=engine: found.tail.logits(pack(engine()), 1)
        maps = pack(_opened(Path(folder) / "cut.onnx", "f32", window)())
        runs["our tail alone"] = lambda: found.tail.logits(maps, 1)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(args.rounds + 1):
            for name, run in runs.items():
                begin = time.process_time()
                answer = run()
                if round_:
                    times[name].append(1e3 * (time.process_time() - begin) / len(os.sched_getaffinity(0)))
                elif name.startswith("f32, the whole"):
                    expected = answer.copy()
                else:
                    print(f"{name}: max |diff| {np.abs(answer - expected).max():.1e} on {np.abs(expected).max():.1f}")
    for name, measured in times.items():
        print(f"{statistics.median(measured):8.1f} CPU ms (least {min(measured):.1f})  {name}")


def _opened(path: Path, hint: str, window: Float32) -> Callable[[], list[Float32]]:
    """Run of an engine: its outputs, in the order of their names."""
    properties = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", properties)
    request, names = compiled.create_infer_request(), [output.get_any_name() for output in compiled.outputs]
    order = sorted(range(len(names)), key=names.__getitem__)

    def run() -> list[Float32]:
        result = request.infer([window], share_inputs=True, share_outputs=True)
        return [result[index] for index in order]

    return run


if __name__ == "__main__":
    main()
