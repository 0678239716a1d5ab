"""A Triton server that serves an exported bundle, under several clients, against the same code without a server.

    tests/engines/serving/install_triton.sh python3 triton
    python deploy.py export-triton BUNDLE -o models --name streets
    triton/serve --model-repository models &
    triton/bin/python -m benchmarks.triton models/streets/1 IMAGE [--clients 1,2,4,8] [--seconds 15] [--rounds 3]

Each client sends the file again as soon as it has the labels.  In each round the file is first read and segmented in
this process, one time after the other, while the server has nothing to do; then every number of clients has its turn.
Printed are medians over rounds, ratios taken within them, and how many images Triton gave the model at once.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

PORTS = {"http": 8000, "grpc": 8001}
METRICS = 8002


def alone(version: Path, image: Path, seconds: float) -> list[float]:
    """Milliseconds of each image in this process, by the code and the bundle of the repository."""
    sys.path.insert(0, str(version))
    read = importlib.import_module("engines.images.read").read_image
    opened = importlib.import_module("engines.segmenter").open_segmenter
    times: list[float] = []
    with opened(version / "bundle") as (segmenter, _):
        segmenter.segment(read(image))
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            segmenter.segment(read(image))
            times.append(1e3 * (time.perf_counter() - begin))
    return times


def client(args: argparse.Namespace, content: bytes, end: float, times: list[float]) -> None:
    module: Any = importlib.import_module(f"tritonclient.{args.protocol}")
    tensor = module.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[content]], np.object_))
    wanted = [module.InferRequestedOutput("labels")]
    with module.InferenceServerClient(f"{args.host}:{PORTS[args.protocol]}") as server:
        while (begin := time.perf_counter()) < end:
            server.infer(args.version.parent.name, [tensor], outputs=wanted)
            times.append(1e3 * (time.perf_counter() - begin))


def _counts(args: argparse.Namespace) -> tuple[float, float]:
    """Images, and calls of the model, since the server was started."""
    with urllib.request.urlopen(f"http://{args.host}:{METRICS}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    mine = [line for line in lines if f'model="{args.version.parent.name}"' in line]

    def total(metric: str) -> float:
        return sum(float(line.split()[-1]) for line in mine if line.startswith(f"{metric}{{"))

    return total("nv_inference_count"), total("nv_inference_exec_count")


def loaded(args: argparse.Namespace, content: bytes, clients: int) -> tuple[float, list[float], float]:
    """Images a second, milliseconds of each, and images a call."""
    times: list[float] = []
    before, begin = _counts(args), time.perf_counter()
    given = (args, content, begin + args.seconds, times)
    threads = [threading.Thread(target=client, args=given) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, after = time.perf_counter() - begin, _counts(args)
    return len(times) / taken, times, (after[0] - before[0]) / (after[1] - before[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", type=Path, help="REPOSITORY/MODEL/VERSION, which the server serves")
    parser.add_argument("image", type=Path)
    parser.add_argument("--clients", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--protocol", choices=sorted(PORTS), default="grpc")
    parser.add_argument("--host", default="localhost")
    args = parser.parse_args()
    args.version = args.version.resolve()
    content, numbers = args.image.read_bytes(), [int(each) for each in args.clients.split(",")]
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    ratios: dict[int, list[float]] = {number: [] for number in numbers}
    sizes: dict[int, list[float]] = {number: [] for number in numbers}
    times: dict[int, list[float]] = {number: [] for number in numbers}
    own: list[float] = []
    for _ in range(args.rounds):
        found = alone(args.version, args.image, args.seconds)
        own += found
        for number in numbers:
            rate, taken, size = loaded(args, content, number)
            rates[number].append(rate)
            ratios[number].append(rate * statistics.fmean(found) / 1e3)
            sizes[number].append(size)
            times[number] += taken
    print(f"without a server: {1e3 / statistics.fmean(own):.2f} images/s, p50 {statistics.median(own):.0f} ms")
    for number in numbers:
        p95 = float(np.percentile(times[number], 95))
        print(
            f"{number} client(s): {statistics.median(rates[number]):.2f} images/s, "
            f"{statistics.median(ratios[number]):.3f} of that; p50 {statistics.median(times[number]):.0f} ms, "
            f"p95 {p95:.0f} ms; {statistics.median(sizes[number]):.1f} images a call"
        )


if __name__ == "__main__":
    main()
