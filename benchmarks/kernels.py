"""The kernels on a GPU: their bits against the C core (--check), or their time against copying as many bytes.

    python -m benchmarks.kernels --check
    python -m benchmarks.kernels [--rounds 15] [--json FILE]

Times: a frame of 2048x1024, three windows of 1024 at stride 768, 19 classes.  A kernel's time is that of many launches
in one CUDA graph, divided; beside it, in the same round, that of as many copies within the GPU of what the kernel reads
and writes.  Buffers take turns: `cached` has two sets, which mostly stay in the second-level cache, as a frame's do;
`cold` so many that they do not.  Medians of the rounds.  --check exits with 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kernel_cases import MEAN, STD, TailCase, check
from engines.gpu import kernels
from engines.gpu.compile import compile_kernels
from engines.gpu.kernels import Launch
from engines.gpu.tail import tail
from engines.gpu.views.launches import HeldView, Logits, Target, merge, resize
from engines.tiling import core
from engines.tiling.placement import Tiling
from engines.tiling.tail import TailShape

FRAME = (1024, 2048)
COLD_BYTES = 400 * 2**20  # several times any second-level cache
ITEM = {"float32": 4, "float16": 2}


class GpuMachine:
    """A GPU as `kernel_cases.Machine`."""

    def __init__(self, gpu: Any) -> None:
        self.gpu = gpu
        self.kernels = gpu.load(compile_kernels(gpu.info.sm))
        self._held: list[Any] = []

    def put(self, array: NDArray[np.generic]) -> int:
        address = self.room(array.nbytes)
        self.gpu.upload(address, array)
        return address

    def take(self, array: NDArray[np.generic], address: int) -> None:
        self.gpu.download(array, address)

    def launch(self, launch: Launch) -> None:
        self.gpu.launch(self.kernels, launch)

    def room(self, size: int) -> int:
        self._held.append(self.gpu.allocate(size))
        return int(self._held[-1].address)

    def free(self) -> None:
        self.gpu.synchronize()
        while self._held:
            self._held.pop().free()


@dataclass(frozen=True)
class Work:
    """A kernel on one frame.  inputs, outputs: bytes of its buffers.  make: its launch, from their addresses."""

    name: str
    inputs: int
    outputs: Sequence[int]
    make: Callable[[GpuMachine, int, Sequence[int]], Launch]


@dataclass(frozen=True)
class Timing:
    """Microseconds.  ratio: median of the rounds' kernel / copy.  graph: whether launches were one graph."""

    name: str
    kernel: str
    cache: str
    bytes: int
    kernel_us: float
    copy_us: float
    ratio: float
    graph: bool


def gather_work(dtype: str, size: tuple[int, int] = FRAME, window: int = 1024) -> Work:
    _, lefts = Tiling(window, window, window * 3 // 4, window * 3 // 4).placements(*size)

    def make(machine: GpuMachine, image: int, outputs: Sequence[int]) -> Launch:
        places = kernels.place(image, size, (3 * size[1], 3, 1), 0, lefts, (window, window), [0] * len(lefts), 0)
        return kernels.gather(
            machine.put(places), len(lefts), (window, window), MEAN, STD, (0, 1, 2), "zero", outputs[0], dtype
        )

    return Work(
        f"gather {dtype}", 3 * size[0] * size[1], [len(lefts) * 3 * window**2 * ITEM[dtype]], make
    )  # fmt: skip


def scatter_work(dtype: str, windows: int = 3, classes: int = 19, low: int = 256) -> Work:
    each = classes * low**2

    def make(machine: GpuMachine, logits: int, outputs: Sequence[int]) -> Launch:
        wanted = [outputs[0] + window * each * ITEM[dtype] for window in range(windows)]
        arrived = machine.put(np.zeros(1, np.int32))
        places = kernels.place(logits, (low, low), (low, 1, 1), 0, [0] * windows, (low, low), wanted, arrived)
        return kernels.scatter(machine.put(places), windows, logits, each, dtype)

    bytes_ = windows * each * ITEM[dtype]
    return Work(f"scatter {dtype}", bytes_, [bytes_], make)


def stitch_work(
    name: str, dtype: str, ratio: int = 4, confidence: bool = False, blend: str = "uniform",
    size: tuple[int, int] = FRAME, window: int = 1024, classes: int = 19,
) -> Work:  # fmt: skip
    tiling = Tiling(window, window, window * 3 // 4, window * 3 // 4, blend)
    tops, lefts = tiling.placements(*size)
    low = window // ratio
    weights = core.blend_weights(blend, window, window)

    def make(machine: GpuMachine, logits: int, outputs: Sequence[int]) -> Launch:
        at = (machine.put(weights[0]), machine.put(weights[1])) if weights else None
        return kernels.stitch(
            logits, dtype, (low, low), classes, len(tops), len(lefts), tiling, size, (0, size[0]), range(len(tops)),
            at, outputs[0], size[1], outputs[1] if confidence else 0, size[1], machine.put(np.zeros(1, np.int32)),
        )  # fmt: skip

    pixels = size[0] * size[1]
    return Work(
        f"stitch {name} {dtype}", len(tops) * len(lefts) * classes * low**2 * ITEM[dtype],
        [pixels, 4 * pixels] if confidence else [pixels], make,
    )  # fmt: skip


def tail_work(name: str, dtype: str, shape: TailShape) -> Work:
    """Of one window.  Its bytes are a floor that it cannot reach where it is bound by arithmetic."""
    case = TailCase(shape)

    def make(machine: GpuMachine, maps: int, outputs: Sequence[int]) -> Launch:
        return tail(shape, dtype, maps, [machine.put(array) for array in case.tail().weights], outputs[0], 1)

    logits = 4 * shape.classes * shape.height * shape.width
    return Work(f"tail {name} {dtype}", case.maps(dtype).nbytes, [logits], make)


def resize_work(to: tuple[int, int], size: tuple[int, int] = FRAME) -> Work:
    def make(machine: GpuMachine, image: int, outputs: Sequence[int]) -> Launch:
        return resize(image, size, (3 * size[1], 3, 1), 3, outputs[0], to)

    return Work(f"resize to {to[1]}x{to[0]}", 3 * size[0] * size[1], [3 * to[0] * to[1]], make)


def view_works(
    dtype: str, classes: int = 19, size: tuple[int, int] = FRAME, view: tuple[int, int] = (1792, 3584), rows: int = 128,
    window: int = 1024,
) -> list[Work]:  # fmt: skip
    """Of rows that are merged at once, the mean logits of a view, and what those add to the labels.

    The second reads them three times, and of its bytes counts one.
    """
    tiling = Tiling(window, window, window * 3 // 4, window * 3 // 4)
    tops, lefts = tiling.placements(*view)
    count, low = len(tops) * len(lefts), (window // 4, window // 4)
    means, merged = 4 * classes * (rows * view[0] // size[0] + 3) * view[1], 4 * classes * rows * size[1]

    def launches(machine: GpuMachine, means_at: int, merged_at: int) -> list[Launch]:
        """Of three views: mean logits and what they add, in turns."""
        logits = machine.put(np.zeros((count, classes, *low), dtype))
        held = HeldView(
            view, tiling, logits=logits, ring=len(tops), pitch=len(lefts), held=range(len(tops)), share=0.5
        )  # fmt: skip
        to = Target(
            labels=machine.room(rows * size[1]), labels_stride=size[1], confidence=0, confidence_stride=size[1],
            status=machine.put(np.zeros(1, np.int32)), means=means_at, merged=merged_at,
        )  # fmt: skip
        return list(merge([held] * 3, Logits(dtype, classes, low, None), size, (0, rows), to))

    def mean(machine: GpuMachine, _: int, outputs: Sequence[int]) -> Launch:
        return launches(machine, outputs[0], machine.room(merged))[2]

    def add(machine: GpuMachine, means_at: int, outputs: Sequence[int]) -> Launch:
        return launches(machine, means_at, outputs[0])[3]

    part = count * classes * low[0] * low[1] * ITEM[dtype] * rows // size[0]  # of the logits, that the rows are made of
    works = [Work(f"views, {rows} rows, mean logits {dtype}", part, [means], mean)]
    return [*works, Work(f"views, {rows} rows, softmax", means, [merged], add)] if dtype == "float32" else works


def works() -> list[Work]:
    small, large = ((128, 128), (64, 64), (32, 32)), (256, 256)
    found = [resize_work((1792, 3584))]
    for dtype in ITEM:
        found += [
            gather_work(dtype),
            scatter_work(dtype),
            stitch_work("1/4", dtype),
            stitch_work("1/4, confidence", dtype, confidence=True),
            stitch_work("1/4, 2050x1027", dtype, size=(1027, 2050)),  # the last windows not at multiples of 4
            stitch_work("1/4, gaussian", dtype, blend="gaussian"),
            stitch_work("1/8", dtype, ratio=8),
            stitch_work("1/16", dtype, ratio=16),
            stitch_work("full resolution", dtype, ratio=1),
            *view_works(dtype),
            tail_work("B0", dtype, TailShape(*large, 32, 256, 19, small)),
            tail_work("B2", dtype, TailShape(*large, 64, 768, 19, small)),
        ]
    return found


def measure(machine: GpuMachine, work: Work, cold: bool, rounds: int, launches: int = 20) -> Timing:
    gpu, total = machine.gpu, work.inputs + sum(work.outputs)
    sets = max(2, -(-COLD_BYTES // total)) if cold else 2
    launches = max(launches, sets)
    rng = np.random.default_rng(0)
    pattern = (rng.standard_normal(work.inputs // 4 // 8 + 1) * 3).astype(np.float16)  # small numbers in any dtype
    content = np.resize(pattern.view(np.uint8), work.inputs)
    jobs = []
    for _ in range(sets):
        launch = work.make(machine, machine.put(content), [machine.room(size) for size in work.outputs])
        jobs.append((launch, machine.room(total), machine.room(total)))

    def compute() -> None:
        for index in range(launches):
            machine.launch(jobs[index % sets][0])

    def copy() -> None:
        for index in range(launches):
            gpu.copy(jobs[index % sets][1], jobs[index % sets][2], total)

    runs, graphs = _recorded(gpu, (compute, copy))
    start, end = gpu.event(timed=True), gpu.event(timed=True)
    seconds: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        for run, times in zip(runs, seconds, strict=True):
            gpu.mark(start, gpu.main)
            run()
            gpu.mark(end, gpu.main)
            gpu.finish(end)
            if index:  # the first round warms up
                times.append(gpu.seconds(start, end) / launches * 1e6)
    for graph in graphs:
        graph.free()
    machine.free()
    return Timing(
        work.name, jobs[0][0].kernel, "cold" if cold else "cached", total, statistics.median(seconds[0]),
        statistics.median(seconds[1]), statistics.median(a / b for a, b in zip(*seconds, strict=True)), bool(graphs),
    )  # fmt: skip


def _recorded(gpu: Any, works: Sequence[Callable[[], None]]) -> tuple[list[Callable[[], None]], list[Any]]:
    """Each as one graph where the driver records it: else starting a kernel would take longer than the kernel."""
    from engines.gpu.graph import CaptureRefusedError

    for work in works:
        work()
    gpu.synchronize()
    try:
        graphs = [gpu.record(work) for work in works]
    except CaptureRefusedError as error:
        print(f"no graphs, launches are timed with their start: {error}", file=sys.stderr)
        return list(works), []
    return [lambda graph=graph: gpu.replay(graph) for graph in graphs], graphs


def run_check(machine: GpuMachine) -> int:
    """The number of cases that differ."""
    total = wrong = 0
    for text, differences in check(machine):
        total += 1
        if differences:
            wrong += 1
            print(f"DIFFERS in {differences} values: {text}")
        machine.free()
    print(f"{total} cases on {machine.gpu.info}: {wrong} differ from the C core")
    return wrong


def main(argv: Sequence[str] | None = None) -> None:
    from engines.gpu.context import open_gpu

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with open_gpu() as gpu:
        machine = GpuMachine(gpu)
        if args.check:
            sys.exit(bool(run_check(machine)))
        timings = []
        print(f"{gpu.info}\n{'':34} {'':6} {'MB':>6} {'kernel us':>9} {'copy us':>9} {'ratio':>6}")
        for work in works():
            for cold in (False, True):
                t = measure(machine, work, cold, args.rounds)
                timings.append(t)
                print(
                    f"{t.name:34} {t.cache:6} {t.bytes / 1e6:6.1f} {t.kernel_us:9.1f} {t.copy_us:9.1f} {t.ratio:6.2f}",
                    flush=True,
                )
        if args.json:
            report = {"gpu": str(gpu.info), "rounds": args.rounds, "timings": [asdict(t) for t in timings]}
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
