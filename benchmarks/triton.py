"""A Triton server that serves an exported bundle, under several clients, against the same code without a server.

    tests/engines/serving/install_triton.sh python3 triton
    python deploy.py export-triton BUNDLE -o models --name streets
    triton/serve --model-repository models &
    triton/bin/python -m benchmarks.triton models/streets/1 IMAGE --pid $! [--clients 1,2,4,8] [--seconds 15]

Each client sends the file again as soon as it has the labels.  In each round the file is first read and segmented in
this process, one time after the other, while the server has nothing to do; then every number of clients has its turn.
Printed are medians over rounds, ratios taken within them, how many images Triton gave the model at once, and
milliseconds of processor an image, of this process and of the server with all that it started: they hold on a busy
machine, too.
"""

from __future__ import annotations

import argparse
import importlib
import os
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


def processes(pid: int) -> list[int]:
    """A process and those that it started."""
    children = {child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()}
    return [pid, *(each for child in children for each in processes(int(child)))]


def processor(pid: int) -> float:
    """Milliseconds of processor that a process and those that it started have used."""
    ticks = 0
    for each in processes(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * 1e3 / os.sysconf("SC_CLK_TCK")


def alone(version: Path, image: Path, seconds: float) -> tuple[list[float], float]:
    """Milliseconds of each image in this process, by the code and the bundle of the repository; of processor, each."""
    sys.path.insert(0, str(version))
    read = importlib.import_module("engines.images.read").read_image
    opened = importlib.import_module("engines.segmenter").open_segmenter
    times: list[float] = []
    with opened(version / "bundle") as (segmenter, _):
        segmenter.segment(read(image))
        end, used = time.perf_counter() + seconds, time.process_time()
        while (begin := time.perf_counter()) < end:
            segmenter.segment(read(image))
            times.append(1e3 * (time.perf_counter() - begin))
        used = time.process_time() - used
    return times, 1e3 * used / len(times)


def encoded(module: Any, content: bytes) -> Any:
    """The input of a file's bytes.  module: Triton's client."""
    tensor = module.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[content]], np.object_))
    return tensor


def client(args: argparse.Namespace, content: bytes, end: float, times: list[float]) -> None:
    module: Any = importlib.import_module(f"tritonclient.{args.protocol}")
    tensor = encoded(module, content)
    wanted = [module.InferRequestedOutput("labels")]
    with module.InferenceServerClient(f"localhost:{PORTS[args.protocol]}") as server:
        while (begin := time.perf_counter()) < end:
            server.infer(args.version.parent.name, [tensor], outputs=wanted)
            times.append(1e3 * (time.perf_counter() - begin))


def _counts(args: argparse.Namespace) -> tuple[float, float]:
    """Images, and calls of the model, since the server was started."""
    with urllib.request.urlopen(f"http://localhost:{METRICS}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    mine = [line for line in lines if f'model="{args.version.parent.name}"' in line]

    def total(metric: str) -> float:
        return sum(float(line.split()[-1]) for line in mine if line.startswith(f"{metric}{{"))

    return total("nv_inference_count"), total("nv_inference_exec_count")


def loaded(args: argparse.Namespace, content: bytes, clients: int) -> tuple[float, list[float], float, float]:
    """Images a second, milliseconds of each, images a call, and milliseconds of processor an image."""
    times: list[float] = []
    used = processor(args.pid)
    before, begin = _counts(args), time.perf_counter()
    given = (args, content, begin + args.seconds, times)
    threads = [threading.Thread(target=client, args=given) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, after = time.perf_counter() - begin, _counts(args)
    used = (processor(args.pid) - used) / len(times)
    return len(times) / taken, times, (after[0] - before[0]) / (after[1] - before[1]), used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", type=Path, help="REPOSITORY/MODEL/VERSION, which the server serves")
    parser.add_argument("image", type=Path)
    parser.add_argument("--pid", type=int, required=True, help="of the server, on this machine")
    parser.add_argument("--clients", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--protocol", choices=sorted(PORTS), default="grpc")
    args = parser.parse_args()
    args.version = args.version.resolve()
    content, numbers = args.image.read_bytes(), [int(each) for each in args.clients.split(",")]
    alone_ms: list[float] = []
    alone_used: list[float] = []
    found: dict[int, list[tuple[float, list[float], float, float]]] = {number: [] for number in numbers}
    ratios: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    for _ in range(args.rounds):
        times, used = alone(args.version, args.image, args.seconds)
        alone_ms += times
        alone_used.append(used)
        for number in numbers:
            one = loaded(args, content, number)
            found[number].append(one)
            ratios[number].append((one[0] * statistics.fmean(times) / 1e3, one[3] / used))
    median = statistics.median
    print(f"without a server: {1e3 / statistics.fmean(alone_ms):.2f} images/s, p50 {median(alone_ms):.0f} ms, "
          f"processor {median(alone_used):.0f} ms an image")  # fmt: skip
    for number, rounds in found.items():
        times = [each for one in rounds for each in one[1]]
        print(f"{number} client(s): {median(one[0] for one in rounds):.2f} images/s, "
              f"{median(ratio[0] for ratio in ratios[number]):.3f} of that; p50 {median(times):.0f} ms, "
              f"p95 {np.percentile(times, 95):.0f} ms; {median(one[2] for one in rounds):.1f} images a call; "
              f"processor {median(one[3] for one in rounds):.0f} ms an image, "
              f"{median(ratio[1] for ratio in ratios[number]):.3f} of that")  # fmt: skip


if __name__ == "__main__":
    main()
