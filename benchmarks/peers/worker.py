"""One contestant in its own process, so that its memory is its own.  Answers JSON lines on its standard output.

    python -m benchmarks.peers.worker CONTESTANT MODEL WORK THREADS

Requests: {"frame": image.npy} segments it; {"save": labels.npy} writes the last labels; {"clear": mask.npy, "frame": …}
writes where the two best classes differ clearly.  Everything else that a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.contestants import Unavailable, make
from benchmarks.peers.models import MODELS


def main() -> None:
    contestant, name, work, threads = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    model = MODELS[name]
    begin = time.perf_counter()
    try:
        segment, versions = make(contestant, model, work, threads)
    except (Unavailable, ImportError) as error:
        send(unavailable=str(error))
        return
    loaded = time.perf_counter()
    segment(np.zeros((model.window, model.window, 3), np.uint8), False)  # compiles, where there is something to compile
    first = time.perf_counter()
    send(load_s=loaded - begin, first_s=first - loaded, versions=versions)
    labels = np.empty(0, np.uint8)
    for line in sys.stdin:
        request = json.loads(line)
        if "save" in request:
            np.save(request["save"], labels)
            send(saved=True)
            continue
        image = np.load(request["frame"])
        exact = reset_peak()
        frame = segment(image, "clear" in request)
        peak = peak_mb()
        labels = frame.labels
        if "clear" in request:
            from benchmarks.slide import clear_pixels

            assert frame.logits is not None
            np.save(request["clear"], clear_pixels(frame.logits))
        send(network_s=frame.network, rest_s=frame.rest, peak_mb=peak, peak_exact=exact)
        del frame


def reset_peak() -> bool:
    """Let the kernel forget the process's peak.  False where it will not: then peaks include start-up."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb() -> float:
    """Peak resident memory in MB (10^6 bytes) since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status: got no VmHWM, expected Linux")


if __name__ == "__main__":
    main()
