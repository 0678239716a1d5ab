"""Ten thousand small images, then large ones for a while: memory, descriptors and threads must end as they were.

    python -m benchmarks.load BUNDLE --small 10000 --minutes 20

`deploy.py run` works in a process of its own and is looked at from outside.  Printed is the median of each quarter of
the time; exit code 1 where the last quarter has more than the second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
EVERY = 0.5  # seconds
GROWTH = 1.05  # of the memory in the second quarter, at the end
SMALL, LARGE = (96, 128), (6144, 8192)
TRIED = 3  # large images, to know how many fill the time


@dataclass(frozen=True)
class Sample:
    """megabytes: resident.  files: open descriptors.  threads.  Each of the process and of those that it started."""

    megabytes: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        """Raises FileNotFoundError or ProcessLookupError when it has ended."""
        total = cls(0, 0, 0)
        for each in _tree(pid):
            at = Path("/proc") / str(each)
            resident = int((at / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            files, threads = len(os.listdir(at / "fd")), len(os.listdir(at / "task"))
            total = cls(total.megabytes + resident, total.files + files, total.threads + threads)
        return total


def _tree(pid: int) -> list[int]:
    children = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
    return [pid, *(deeper for child in children for deeper in _tree(int(child)))]


def watch(bundle: Path, photographs: Path, output: Path) -> tuple[list[Sample], float]:
    """Run, and sample.  Returns the samples and the seconds that it took.  Raises SystemExit when it fails."""
    command = [sys.executable, str(ROOT / "deploy.py"), "run", str(bundle), str(photographs), "-o", str(output)]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    samples = []
    while process.poll() is None:
        with suppress(FileNotFoundError, ProcessLookupError):  # one of them has just ended
            samples.append(Sample.of(process.pid))
        time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"run: exit {process.returncode}")
    return samples, time.monotonic() - begin


def quarters(samples: list[Sample]) -> list[Sample]:
    """The median of each quarter of the time."""
    step = max(1, len(samples) // 4)
    parts = [samples[index * step : (index + 1) * step] for index in range(4)]
    return [Sample(*(statistics.median(values) for values in zip(*map(astuple, part), strict=True))) for part in parts]


def flat(found: list[Sample]) -> bool:
    _, second, _, last = found
    return last.megabytes <= GROWTH * second.megabytes and (last.files, last.threads) <= (second.files, second.threads)


def _photographs(folder: Path, size: tuple[int, int], count: int) -> Path:
    """A folder of `count` names for eight images of noise and shade, (height, width)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    kinds = min(8, count)
    for index in range(kinds):
        coarse = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), np.uint8)
        image = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:06}.jpg", quality=90)
    for index in range(kinds, count):
        os.link(folder / f"{index % kinds:06}.jpg", folder / f"{index:06}.jpg")
    return folder


def _report(name: str, count: int, samples: list[Sample], seconds: float) -> bool:
    found = quarters(samples)
    print(f"{name}: {count} images in {seconds:.0f} s, {len(samples)} samples")
    for index, each in enumerate(found, 1):
        print(f"  quarter {index}: {each.megabytes:.0f} MB, {each.files} descriptors, {each.threads} threads")
    good = flat(found)
    print(f"  {'flat' if good else 'it grows'}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory, descriptors and threads of long runs.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--small", type=int, default=10_000, help="images")
    parser.add_argument("--minutes", type=float, default=20, help="of large images")
    arguments = parser.parse_args()
    good = []
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        folder = Path(name)
        small = _photographs(folder / "small", SMALL, arguments.small)
        good.append(_report("small", arguments.small, *watch(arguments.bundle, small, folder / "small-masks")))
        _, seconds = watch(arguments.bundle, _photographs(folder / "few", LARGE, TRIED), folder / "few-masks")
        count = max(8, round(60 * arguments.minutes * TRIED / seconds))
        large = _photographs(folder / "large", LARGE, count)
        good.append(_report("large", count, *watch(arguments.bundle, large, folder / "large-masks")))
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
