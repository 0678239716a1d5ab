"""Memory and time of outlines by their number: labels of noise, of which nearly every pixel is an area.

    python -m benchmarks.polygons [--sides 400 1150]

Each case in a process of its own; memory is what its peak grows by.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import rasterio

from engines.machine.limits import cores
from engines.rasters.polygons import FORMATS, Format, write_polygons

ROOT = Path(__file__).parent.parent
CLASSES = 9


def alone(kind: Format, side: int) -> dict[str, float]:
    """In this process."""
    with tempfile.TemporaryDirectory() as folder:
        raster = Path(folder, "labels.tif")
        with rasterio.open(
            raster, "w", driver="GTiff", width=side, height=side, count=1, dtype="uint8", nodata=255, tiled=True,
            compress="deflate", crs="EPSG:32632", transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
        ) as file:  # fmt: skip
            file.write(np.random.default_rng(0).integers(0, CLASSES, (side, side), np.uint8), 1)
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        count = write_polygons(raster, Path(folder, f"labels.{kind}"), kind, [str(k) for k in range(CLASSES)])
        seconds = time.process_time() - begin
    return {"polygons": count, "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
            "seconds": seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=[400, 1150], metavar="PIXELS")
    args = parser.parse_args()
    print(f"{date.today()}, {cores()} cores")
    for kind in FORMATS:
        for side in args.sides:
            code = f"import json; from benchmarks.polygons import alone; print(json.dumps(alone({kind!r}, {side})))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
            found = json.loads(done.stdout)
            count, size = found["polygons"], found["bytes"]
            print(
                f"{kind:>8}: {count} polygons, {size / 1e6:.0f} MB more, {size / count:.0f} bytes each, "
                f"{found['seconds']:.1f} s of processor", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
