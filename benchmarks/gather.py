"""Gathering a window of 1024x1024 from an image of 2048x1024 pixels: the C core, by the number of its bands.

usage: python -m benchmarks.gather [--rounds 41]

One thread; beside it NumPy, which subtracts, divides and turns the same pixels.  Medians, interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from engines.tiling import core

WINDOW = (1024, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    print(f"{'bands':>6}{'C core, ms':>12}{'NumPy, ms':>12}")
    for bands in (1, 2, 3, 4, 13):
        image = np.random.default_rng(bands).integers(0, 256, (1024, 2048, bands), np.uint8)
        mean, std = np.full(bands, 110.0, np.float32), np.full(bands, 60.0, np.float32)
        out = np.empty((bands, *WINDOW), np.float32)
        times: list[list[float]] = [[], []]
        for _ in range(rounds):
            begin = time.perf_counter()
            core.gather(image, 0, 0, WINDOW, mean, std, out=out, threads=1)  # type: ignore[arg-type]
            middle = time.perf_counter()
            other = np.ascontiguousarray(((image[:, : WINDOW[1]] - mean) / std).transpose(2, 0, 1))
            times[0].append(middle - begin)
            times[1].append(time.perf_counter() - middle)
        assert np.abs(out - other).max() < 1e-5
        print(f"{bands:>6}{1e3 * statistics.median(times[0]):>12.2f}{1e3 * statistics.median(times[1]):>12.2f}")


if __name__ == "__main__":
    main()
