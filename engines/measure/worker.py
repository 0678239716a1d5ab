"""One bundle in a process of its own, so that its peak memory and its threads are its own.

The parent sends commands as JSON lines on stdin and gets one JSON line back for each; images and label maps travel as
.npy files.  Needs what running a bundle needs and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from engines.backends import REFERENCES, get_backend
from engines.bundle import Bundle
from engines.contract import UInt8, executed
from engines.errors import DeployError, GateError, GpuLostError
from engines.guard.ledger import temporary_folder
from engines.machine.limits import cores
from engines.proof.first_run import prover
from engines.segmenter import Segmenter, open_segmenter
from engines.tiling.device import PARTS, Timings
from engines.views.views import ImageViews

# Not -m, which imports from the current directory: that is the user's, and may hold anything.  Python 3.11 has
# -P for it; what that leaves out is the empty entry.
_START = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from engines.measure.worker import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class FrameTimes:
    """One image, from decoded pixels to its label map, in milliseconds.  windows: how often the engine ran."""

    frame_ms: float
    gather_ms: float
    engine_ms: float
    stitch_ms: float
    windows: int

    @classmethod
    def of(cls, times: Timings, frame_s: float) -> FrameTimes:
        """times: of this frame alone."""
        parts = {f"{part}_ms": 1e3 * getattr(times, part) for part in PARTS}
        return cls(1e3 * frame_s, **parts, windows=times.windows)


@dataclass(frozen=True)
class OnDevice:
    """What the segmenter runs on, and how.  name: ``host`` or ``cuda``.  in_flight: frames under way at once.

    graph: ``on``, or ``off: `` and why.  transfers: ``pinned`` or ``mapped``.  Both are empty on the host.
    memory: bytes of the GPU in use, by all programs; None on the host.  contexts: how many take turns.
    """

    name: str
    in_flight: int
    graph: str
    transfers: str
    memory: int | None = None
    contexts: str = ""


@dataclass(frozen=True)
class Opened:
    """What the worker loaded.  load_ms: reading, checking and loading the bundle.

    threads: of stitching, and of the engine at most.
    """

    precision: str
    backend: str
    sdk: str
    device: str
    threads: int
    load_ms: float


class Worker:
    """The parent's side.  views: as for `open_segmenter`.  Ends the process when closed.

    Raises DeployError with the worker's own message, and GpuLostError where the worker did.
    """

    def __init__(
        self, bundle: Path, threads: int = 0, host_code: bool = False, views: ImageViews | None = None
    ) -> None:  # fmt: skip
        self._bundle = bundle
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(temporary_folder("edgeseg-worker-"))
        self._stderr = self._stack.enter_context((self._folder / "stderr").open("w+"))
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-c", _START, str(bundle.absolute()), str(threads), str(int(host_code)),
             json.dumps(None if views is None else views.to_json())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        try:
            self.opened = Opened(**self._answer())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put(self, image: UInt8) -> None:
        """Set the image (H, W, 3) uint8 RGB that `frame` and `engine` work on."""
        path = self._folder / "image.npy"
        np.save(path, image)
        self._ask("put", path=str(path))

    def frame(self) -> FrameTimes:
        """Segment the image once and time it."""
        return FrameTimes(**self._ask("frame"))

    def labels(self) -> UInt8:
        """The label map (H, W) uint8 of the last `frame`."""
        path = self._folder / "labels.npy"
        self._ask("labels", path=str(path))
        labels: UInt8 = np.load(path)
        return labels

    def engine(self) -> float:
        """Milliseconds of one run of the engine alone: of as many windows as it takes, the image's first among them."""
        return float(self._ask("engine")["ms"])

    def frames(self, count: int) -> float:
        """Segment the image `count` times, with as many under way at once as the device takes.  Returns seconds."""
        return float(self._ask("frames", count=count)["seconds"])

    def device(self) -> OnDevice:
        """As it is now: whether a graph is used is known only after the first frames."""
        return OnDevice(**self._ask("device"))

    def time_parts(self, on: bool) -> None:
        """Whether frames of a device other than the host are split into parts, which costs time and forbids a graph."""
        self._ask("time_parts", on=on)

    def peak_bytes(self) -> int:
        """The most memory that the process has held so far: Python, SDK, engine, image and labels."""
        return int(self._ask("memory")["peak"])

    def executed(self) -> dict[str, float]:
        """Share of the layers' time by the type they really run in, largest first; empty where the SDK cannot tell.

        Profiles a second copy of the engine, so ask for the peak of memory before.
        """
        shares: dict[str, float] = self._ask("executed")["shares"]
        return shares

    def close(self) -> None:
        """End the process, if it has not ended, and remove its files."""
        with suppress(OSError):  # it may have died with bytes unread
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._stack.close()

    def _ask(self, command: str, **values: Any) -> dict[str, Any]:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": command, **values}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._died() from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kinds = {kind.exit_code: kind for kind in (GpuLostError, GateError)}
            raise kinds.get(answer["code"], DeployError)(answer["error"])
        return answer

    def _died(self) -> DeployError:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        hint = "; it may have run out of memory" if code == -9 else ""
        return DeployError(
            f"bundle {self._bundle}: its process ended ({how}){hint} {lines[-1] if lines else ''}".strip()
        )


class _Served:
    """The worker's side: one segmenter and the image it works on."""

    def __init__(self, segmenter: Segmenter, bundle: Bundle, threads: int, host_code: bool = False) -> None:
        self._segmenter, self._bundle, self._threads, self._host_code = segmenter, bundle, threads, host_code
        self._image: UInt8 = np.zeros((1, 1, 3), np.uint8)
        self._labels: UInt8 = np.zeros((1, 1), np.uint8)

    def put(self, path: str) -> dict[str, Any]:
        self._image = np.load(path)
        return {}

    def frame(self) -> dict[str, Any]:
        begin = time.perf_counter()
        running = self._segmenter.start(self._image)
        self._labels = running.mask().labels
        return asdict(FrameTimes.of(running.timings, time.perf_counter() - begin))

    def labels(self, path: str) -> dict[str, Any]:
        np.save(path, self._labels)
        return {}

    def engine(self) -> dict[str, Any]:
        return {"ms": self._segmenter.device.engine_ms(self._image)}

    def frames(self, count: int) -> dict[str, Any]:
        begin = time.perf_counter()
        done = sum(1 for _ in self._segmenter.stream(repeat(self._image, count)))
        assert done == count
        return {"seconds": time.perf_counter() - begin}

    def device(self) -> dict[str, Any]:
        device = self._segmenter.device
        found = OnDevice(
            device.name, in_flight=device.in_flight, graph=device.graph, transfers=device.transfers,
            memory=device.memory, contexts=device.contexts,
        )  # fmt: skip
        return asdict(found)

    def time_parts(self, on: bool) -> dict[str, Any]:
        self._segmenter.device.parts = on
        return {}

    def executed(self) -> dict[str, Any]:
        manifest = self._bundle.manifest
        if manifest.backend in REFERENCES:  # they compute in one type, and most keep no account of layers
            return {"shares": {manifest.precision: 1.0}}
        window = self._segmenter.first_window(self._image)[:1]
        backend = get_backend(manifest.backend)
        with self._bundle.engine(backend, self._threads, self._host_code) as (blob, config):
            layers = backend.layers(blob, config, window)
        return {"shares": executed(layers)}

    def memory(self) -> dict[str, Any]:
        return {"peak": _peak_bytes()}


def _peak_bytes() -> int:
    # Not ru_maxrss where there is a choice: Linux carries it over from the parent through exec.
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _say(step: str, text: str) -> None:
    print(f"{step:12}{text}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Serve one bundle until stdin ends."""
    # SDKs print to stdout at will; the answers keep the original to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threads, host_code, views = int(argv[1]), bool(int(argv[2])), json.loads(argv[3])
    begin = time.perf_counter()
    try:
        with open_segmenter(
            Path(argv[0]),
            threads,
            host_code,
            prover(_say),
            views=None if views is None else lambda manifest: ImageViews.from_json(views),
        ) as (segmenter, manifest):
            in_force = threads or cores()
            load_ms = 1e3 * (time.perf_counter() - begin)
            opened = Opened(
                manifest.precision,
                backend=manifest.backend,
                sdk=manifest.sdk,
                device=manifest.device,
                threads=in_force,
                load_ms=load_ms,
            )
            print(json.dumps(asdict(opened)), file=answers)
            served = _Served(segmenter, Bundle(Path(argv[0]), manifest), threads, host_code)
            for line in sys.stdin:
                command = json.loads(line)
                print(json.dumps(getattr(served, command.pop("do"))(**command)), file=answers)
    except DeployError as error:
        print(json.dumps({"error": str(error), "code": error.exit_code}), file=answers)
        return error.exit_code
    return 0
