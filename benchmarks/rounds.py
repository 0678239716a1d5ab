"""What several ways of doing the same took, in rounds in which each had its turn, as a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

ALONE = "engine alone"  # what the others are compared with
Taken = tuple[float, float]  # seconds, and seconds of processor, a frame


def clocked(work: Callable[[], object], frames: int) -> Taken:
    begin, used = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - begin) / frames, (time.process_time() - used) / frames


def table(found: Mapping[str, Sequence[Taken]], rate: bool = False) -> None:
    """Print medians over rounds, ratios taken within them.  rate: frames a second in place of milliseconds."""
    unit = "frames/s" if rate else "ms a frame"
    print(f"{'':22}{unit:>12}{'of the engine':>15}{'(least, most)':>18}{'processor ms':>14}")
    for name, rounds in found.items():
        ratios = [alone / seconds for (alone, _), (seconds, _) in zip(found[ALONE], rounds, strict=True)]
        seconds, used = (statistics.median(values) for values in zip(*rounds, strict=True))
        shown = f"{1 / seconds:12.2f}" if rate else f"{1e3 * seconds:12.1f}"
        spread = f"({min(ratios):.3f}, {max(ratios):.3f})"
        print(f"{name:22}{shown}{statistics.median(ratios):15.3f}{spread:>18}{1e3 * used:14.0f}", flush=True)
