"""ONNX graphs against each other in OpenVINO: CPU time of one window, which holds on a machine that others use too.

    python -m benchmarks.graphs [--rounds 9] GRAPH.onnx[:f32|bf16] ...

Rounds are interleaved.  CPU milliseconds of the process over the number of cores: the wall time of an idle machine, if
the engine keeps all cores busy.  For comparing variants of a graph; end-to-end figures come from the other benchmarks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
import openvino


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="+", metavar="GRAPH.onnx[:HINT]")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    core, cores = openvino.Core(), len(os.sched_getaffinity(0))
    requests = {}
    for text in args.graphs:
        path, _, hint = text.partition(":")
        properties = {
            "INFERENCE_PRECISION_HINT": hint or "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": cores,
        }
        compiled = core.compile_model(path, "CPU", properties)
        window = np.full(tuple(compiled.input(0).shape), 0.3, compiled.input(0).element_type.to_dtype())
        requests[text] = (compiled.create_infer_request(), window)
    times: dict[str, list[float]] = {text: [] for text in requests}
    for round_ in range(args.rounds + 1):
        for text, (request, window) in requests.items():
            begin = time.process_time()
            request.infer([window], share_inputs=True)
            if round_:
                times[text].append(1e3 * (time.process_time() - begin) / cores)
    for text, measured in times.items():
        print(f"{statistics.median(measured):8.1f} CPU ms (least {min(measured):.1f})  {text}")


if __name__ == "__main__":
    main()
