"""The memory that one large request takes of a Triton server and its instances, beside what they hold without any.

    triton/serve --model-repository models &
    triton/bin/python -m benchmarks.triton_memory streets INPUT --pid $! [--protocol grpc] [--confidence]

INPUT: an image file, or WxH for as many pixels of noise.  The request is sent twice, since what the server took at
first it keeps.  Printed are megabytes before, at the peak and afterwards: proportional shares of all of the server's
processes together (Pss: shared memory counts once), looked at ten times a second; the client is none of them.
"""

from __future__ import annotations

import argparse
import importlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.triton import PORTS, encoded, processes


def held(pid: int) -> dict[str, float]:
    """Megabytes of each process, by its name and number."""
    found = {}
    for each in processes(pid):
        lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        name = Path(f"/proc/{each}/comm").read_text().strip()
        found[f"{name} {each}"] = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return found


def request(args: argparse.Namespace, module: Any) -> Any:
    """The input."""
    if Path(args.input).is_file():
        return encoded(module, Path(args.input).read_bytes())
    width, height = map(int, args.input.split("x"))
    pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    tensor = module.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("input", help="a file, or WxH")
    parser.add_argument("--pid", type=int, required=True, help="of the server, on this machine")
    parser.add_argument("--protocol", choices=sorted(PORTS), default="grpc")
    parser.add_argument("--confidence", action="store_true", help="asked for, too")
    args = parser.parse_args()
    module: Any = importlib.import_module(f"tritonclient.{args.protocol}")
    tensor = request(args, module)
    for turn in ("first", "second"):
        print(f"{turn}: {_sent(args, module, tensor)}", flush=True)


def _sent(args: argparse.Namespace, module: Any, tensor: Any) -> str:
    """What one request took."""
    peak, over = held(args.pid), threading.Event()
    before = sum(peak.values())

    def look() -> None:
        nonlocal peak
        while not over.wait(0.1):
            peak = max(peak, held(args.pid), key=lambda each: sum(each.values()))

    wanted = [module.InferRequestedOutput(name) for name in ["labels", "confidence"][: 1 + args.confidence]]
    patient = {"network_timeout": 600.0, "connection_timeout": 600.0} if args.protocol == "http" else {}
    looking = threading.Thread(target=look)
    begin = time.perf_counter()
    looking.start()
    try:
        with module.InferenceServerClient(f"localhost:{PORTS[args.protocol]}", **patient) as server:
            labels = server.infer(args.model, [tensor], outputs=wanted).as_numpy("labels")
    finally:
        over.set()
        looking.join()
    seconds, total = time.perf_counter() - begin, sum(peak.values())
    shares = ", ".join(f"{name} {size:.0f}" for name, size in peak.items() if size > 50)
    return (
        f"{labels.size / 1e6:.0f} megapixels in {seconds:.0f} s; {before:.0f} MB before, {total:.0f} at the peak "
        f"({shares}), {sum(held(args.pid).values()):.0f} afterwards: "
        f"{(total - before) * 2**20 / labels.size:.2f} bytes a pixel more"
    )


if __name__ == "__main__":
    main()
